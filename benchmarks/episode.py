"""`make bench-episode`: seconds of one GRPO step of 64 completions on this machine's CPU, split by phase, beside TRL's.

Ours is `baton run` on the quickstart's run file with 24 new tokens: generate, reward, train and publish the weights, every
time. TRL's is `trl_grpo.py`: its trainer does the same work in one process, and starts when ours has ended, since both take
all cores.
Takes about five minutes on two cores.
"""

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import conclude, note, rounded, run, spread
from trl_site import install_trl

from baton.errors import DeadlineError, ServiceFaultError
from baton.local.processes import Child

ROOT = Path(__file__).parent.parent
GOAL_S = 20.0
TRL_GOAL = 2.0
"""TRL's seconds over ours, at least."""
EPISODES = 6
WARM_UP = 2
TRL_STEPS = 5
LIMIT_S = 900.0
PHASES = ("generate", "reward", "put", "train", "publish", "commit")
DTYPE = "bfloat16"
"""Of generation and training, and of TRL. On a CPU with bfloat16 instructions float32 trains half as fast."""


async def finish(name: str, command: list[str], log: Path, env: dict[str, str] | None = None) -> None:
    """Runs a process to its end. It ends with this one, whatever happens."""
    child, deadline = Child(name, command, log, env=env), time.monotonic() + LIMIT_S
    try:
        while child.process.poll() is None:
            if time.monotonic() > deadline:
                raise DeadlineError(f"{name} did not finish within {LIMIT_S:g} s; is the machine overloaded?")
            await asyncio.sleep(0.2)
        if child.process.returncode:
            child.check()
    finally:
        await child.stop()


async def ours(directory: Path) -> dict[str, Any]:
    """Medians over the episodes after the warm-up, of a run whose files are in `directory`/bench."""
    options = {
        "runtime.num_episode": EPISODES, "runtime.save_episode_interval": "null", "models.policy.max_new_tokens": 24,
        "models.policy.dtype": DTYPE, "models.ppo_policy.dtype": DTYPE,
    }  # fmt: skip
    overrides = [part for key, value in options.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "baton.cli", "run", str(ROOT / "deploy/runs/quickstart.yaml"), *overrides]
    note(f"ours: {EPISODES} episodes")
    await finish("baton-run", [*command, "--run-id", "bench", "--output-dir", str(directory)], directory / "baton-run.log")
    rows = [json.loads(line) for line in (directory / "bench" / "metrics.jsonl").read_text().splitlines()][WARM_UP:]
    if len(rows) != EPISODES - WARM_UP or any(row["scored_samples"] != 64 for row in rows):
        raise ServiceFaultError("the run did not score 64 completions in every episode; nothing can be said of its speed")
    medians = {name: rounded(statistics.median(row[f"seconds/{name}"] for row in rows)) for name in PHASES}
    episodes = spread([row["seconds/episode"] for row in rows])
    return {
        "dtype": DTYPE, "episode_s": episodes, "phases_s": medians, "episodes": len(rows),
        "response_tokens": statistics.median(row["response_tokens"] for row in rows),
        "computed_tokens": statistics.median(row["computed_tokens"] for row in rows),
    }  # fmt: skip


async def trl(directory: Path, site: Path) -> dict[str, Any]:
    """The same for TRL's trainer, on the run file that our run has left."""
    note(f"TRL: {TRL_STEPS} steps")
    result = directory / "trl.json"
    command = [str(ROOT / "benchmarks/trl_grpo.py"), str(directory / "bench" / "run.yaml"), str(TRL_STEPS), str(result)]
    await finish("trl", [sys.executable, *command], directory / "trl.log", {"PYTHONPATH": str(site)})
    measured = json.loads(result.read_text())
    return {
        "dtype": DTYPE, "step_s": spread(measured["seconds"]), "steps": len(measured["seconds"]),
        "response_tokens": measured["response_tokens"],
    }  # fmt: skip


async def compare() -> None:
    """Ours, then TRL's, then the result."""
    site = install_trl()
    with tempfile.TemporaryDirectory(prefix="bench-episode-") as name:
        us = await ours(Path(name))
        note(f"ours: {us['episode_s']['median']} s an episode, {us['phases_s']}")
        them = await trl(Path(name), site)
    seconds = us["episode_s"]["median"]
    ratio = them["step_s"]["median"] / seconds
    versus = {"ratio": rounded(ratio), "goal": TRL_GOAL, "met": ratio >= TRL_GOAL}
    parts = {"baton": us, "trl 1.16.0": them, "trl_seconds_over_ours": versus}
    conclude("episode", seconds, "s", goal=GOAL_S, at_least=False, parts=parts)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    run(compare())
