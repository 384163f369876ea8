"""`baton run` with every real part, on a small random model: what it writes, and what it leaves behind when it is hurt."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cli_process import Place

from models import make_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

APP = """
from baton.engine import Engine, reward

@reward(timeout_s=20)
def few_distinct_words(prompt, response, metadata):
    words = response.split()
    return 1.0 - len(set(words)) / max(len(words), 1)

engine = Engine(prompts=[{"prompt": f"w{i} w{i + 1} w{i + 2}"} for i in range(16)], rewards=[few_distinct_words])
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"), layers=2)


@pytest.fixture
def place(tmp_path: Path, model: Path) -> Iterator[Place]:
    run = {
        "runtime": {
            "num_episode": 3, "sample_per_episode": 16, "num_inference_per_prompt": 4, "train_micro_batch_size": 8,
            "train_global_batch_size": 16, "save_episode_interval": 1,
        },
        "models": {
            "policy": {"model": str(model), "seq_length": 64},
            "ppo_policy": {"lr": 1e-3, "dtype": "float32"},
        },
    }  # fmt: skip
    there = Place(tmp_path, yaml.safe_dump(run), stand_ins=False)
    (tmp_path / "my_program.py").write_text(APP)
    answers = [{"prompt": f"w{i}", "completion": f"w{i + 1} w{i}"} for i in range(32)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    yield there
    deadline = time.monotonic() + 60
    while there.processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert there.kill_all() == {}


def start(place: Place, *options: str) -> subprocess.Popen:
    online = () if OFFLINE[1] in options else ("--app", "my_program:engine", *ROLLOUT)
    return place.start("run", "run.yaml", "--run-id", "a", *online, *options, stderr=subprocess.STDOUT)


def settings(*options: str) -> list[str]:
    return [part for option in options for part in ("--set", option)]


ROLLOUT = settings(
    "models.policy.max_new_tokens=16", "models.policy.enforce_eager=true", "models.policy.dtype=float32"
)
"""What only a run with an engine may say."""

OFFLINE = settings(
    "algorithm.name=sft", "prompts.source=jsonl", "prompts.path=answers.jsonl", "runtime.num_inference_per_prompt=1"
)
"""A run without an engine, which begins sooner, for what has nothing to do with one."""


def read_until(run: subprocess.Popen, pattern: str) -> str:
    """Reads the run's output up to the first line that matches; fails with the output if none does."""
    lines = []
    for line in run.stdout:
        lines.append(line)
        if re.search(pattern, line):
            return "".join(lines)
    raise AssertionError(f"no line matches {pattern}:\n{''.join(lines)}")


def service_pid(place: Place, name: str) -> int:
    """The service's own process, below its keeper."""
    deployment = json.loads((place.runs / "a" / "deployment.json").read_text())
    return (
        json.loads((place.runs / "a" / "ready" / f"{name}.json").read_text())["pid"]
        if name != "store"
        else _store_pid(deployment)
    )


def _store_pid(deployment: dict) -> int:
    keeper = deployment["services"]["store"]["pid"]
    children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
    return int(children[0]) if children else keeper


def half_written(place: Place) -> list[Path]:
    return [path for path in (place.runs / "a").rglob("*.partial") if path.is_dir()]


def test_a_run_ends_with_metrics_plot_checkpoint_and_a_loadable_export(place: Place) -> None:
    run = start(place)
    output, _ = run.communicate(timeout=600)
    assert run.returncode == 0, output
    folder = place.runs / "a"
    episodes = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [episode["episode"] for episode in episodes] == [0, 1, 2]
    assert all(episode["seconds/train"] > 0 and episode["grad_norm"] > 0 for episode in episodes)
    assert abs(episodes[0]["mismatch_kl"]) < 1e-4, "fp32 on both sides: the engines agree"
    assert len({episode["weights_digest"] for episode in episodes}) == 3
    assert (folder / "reward.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [f"step-{step:08d}" for step in (1, 2, 3)]
    load = "from transformers import AutoModelForCausalLM, AutoTokenizer as T; import sys; d = sys.argv[1]; "
    load += "AutoModelForCausalLM.from_pretrained(d); print(T.from_pretrained(d)('w1 w2').input_ids)"
    loaded = subprocess.run(
        [os.sys.executable, "-c", load, str(folder / "export")], capture_output=True, text=True, timeout=600
    )
    assert loaded.stdout.strip() == "[4, 5]", loaded.stderr


STATIC = settings(
    "models.policy.generator=megatron", "models.policy.tensor_model_parallel_size=2",
    "models.policy.batch_generation.ranking=true", "models.policy.max_num_seqs=8",
)  # fmt: skip


def test_a_run_on_static_batches_learns_from_what_the_trainer_holds(place: Place) -> None:
    run = start(place, *STATIC)
    output, _ = run.communicate(timeout=600)
    assert run.returncode == 0, output
    episodes = [json.loads(line) for line in (place.runs / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [episode["episode"] for episode in episodes] == [0, 1, 2]
    assert all(abs(episode["mismatch_kl"]) < 1e-4 and episode["grad_norm"] > 0 for episode in episodes)
    assert len({episode["weights_digest"] for episode in episodes}) == 3


@pytest.mark.parametrize(
    ("victim", "options"), [("store", OFFLINE), ("trainer", [])], ids=lambda part: part if isinstance(part, str) else ""
)
def test_a_killed_part_ends_the_run_soon_with_its_name_and_nothing_left(
    place: Place, victim: str, options: list[str]
) -> None:
    run = start(place, "--set", "runtime.num_episode=500", *options)
    read_until(run, r"^episode 1 done")
    os.kill(service_pid(place, victim), signal.SIGKILL)
    output, _ = run.communicate(timeout=600)
    assert run.returncode == 1, output
    assert re.search(rf"error.*{victim}", output, re.I | re.S), output
    assert half_written(place) == []


@pytest.mark.parametrize("options", [(), STATIC], ids=["vllm", "static"])
def test_the_only_replica_is_started_again_when_it_is_killed_and_the_run_goes_on(place: Place, options: tuple[str]) -> None:
    run = start(place, "--set", "runtime.num_episode=8", *options)
    read_until(run, r"^episode 0 done")
    os.kill(service_pid(place, "rollout-0"), signal.SIGKILL)
    output, _ = run.communicate(timeout=600)
    assert run.returncode == 0, output
    assert re.search(r"rollout-0 (was ended by SIGKILL|exited with code 1).*starting it again", output, re.S), output
    episodes = [json.loads(line) for line in (place.runs / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [episode["policy_version"] for episode in episodes] == list(range(1, 9))


@pytest.mark.parametrize(
    ("moment", "times", "options"),
    [
        (r"is ready", 1, []), (r"^episode 1: train", 1, []), (r"^episode 1: checkpoint", 1, OFFLINE),
        (r"^episode 2: checkpoint", 2, OFFLINE),
    ],
    ids=["start", "train", "checkpoint", "checkpoint twice"],
)  # fmt: skip
def test_ctrl_c_at_any_point_leaves_no_process_and_no_half_checkpoint(
    place: Place, moment: str, times: int, options: list[str]
) -> None:
    run = start(place, "--set", "runtime.num_episode=500", *options)
    read_until(run, moment)
    for _ in range(times):
        os.kill(run.pid, signal.SIGINT)
        time.sleep(0.05)
    output, _ = run.communicate(timeout=600)
    assert run.returncode == 130, output
    assert half_written(place) == []
