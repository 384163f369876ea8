"""`make bench-episode`: seconds of one GRPO step of 64 completions on this machine's CPU, split by phase, beside TRL's.

Ours is `baton run` on the quickstart's run file with 24 new tokens: generate, reward, train and publish the weights, every
time. So is the run with adapters, on its own run file. TRL's is `trl_grpo.py`: its trainer does the full one's work in one
process. Each starts when the one before has ended, since all take all cores.
Takes about seven minutes on two cores.
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


async def ours(directory: Path, run_file: str) -> dict[str, Any]:
    """Medians over the episodes after the warm-up, of a run whose files are in `directory`/`run_file`."""
    options = {
        "runtime.num_episode": EPISODES, "runtime.save_episode_interval": "null", "models.policy.max_new_tokens": 24,
        "models.policy.dtype": DTYPE, "models.ppo_policy.dtype": DTYPE,
    }  # fmt: skip
    overrides = [part for key, value in options.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "baton.cli", "run", str(ROOT / f"deploy/runs/{run_file}.yaml"), *overrides]
    note(f"{run_file}: {EPISODES} episodes")
    await finish(run_file, [*command, "--run-id", run_file, "--output-dir", str(directory)], directory / f"{run_file}.log")
    rows = [json.loads(line) for line in (directory / run_file / "metrics.jsonl").read_text().splitlines()][WARM_UP:]
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
    """The same for TRL's trainer, on the run file that our full run has left."""
    note(f"TRL: {TRL_STEPS} steps")
    result = directory / "trl.json"
    command = [str(ROOT / "benchmarks/trl_grpo.py"), str(directory / "quickstart" / "run.yaml"), str(TRL_STEPS), str(result)]
    await finish("trl", [sys.executable, *command], directory / "trl.log", {"PYTHONPATH": str(site)})
    measured = json.loads(result.read_text())
    return {
        "dtype": DTYPE, "step_s": spread(measured["seconds"]), "steps": len(measured["seconds"]),
        "response_tokens": measured["response_tokens"],
    }  # fmt: skip


async def compare() -> None:
    """Ours, full and with adapters, then TRL's, then the result."""
    site = install_trl()
    with tempfile.TemporaryDirectory(prefix="bench-episode-") as name:
        us, adapters = [await ours(Path(name), run_file) for run_file in ("quickstart", "lora")]
        for kind in (us, adapters):
            note(f"{kind['episode_s']['median']} s an episode, {kind['phases_s']}")
        them = await trl(Path(name), site)
    seconds = us["episode_s"]["median"]
    ratio = them["step_s"]["median"] / seconds
    versus = {"ratio": rounded(ratio), "goal": TRL_GOAL, "met": ratio >= TRL_GOAL}
    parts = {"baton": us, "baton lora": adapters, "trl 1.16.0": them, "trl_seconds_over_ours": versus}
    conclude("episode", seconds, "s", goal=GOAL_S, at_least=False, parts=parts)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    run(compare())
