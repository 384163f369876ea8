"""`baton run` of the algorithms that are not the quickstart's, with every real part, on a small random model."""

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cli_process import Place

from models import make_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROGRAM = """
from baton.engine import Engine, Model, RLHFEngine, reward

@reward(timeout_s=20)
def few_distinct_words(prompt, response, metadata):
    words = response.split()
    return 1.0 - len(set(words)) / max(len(words), 1)

def relay_sample_fn(episode_relay_buffers):
    buffers = []
    for relay_buffer in episode_relay_buffers:
        buffers += relay_buffer.buffer
    return buffers

policy, reference, value, ppo_policy, ppo_value = map(Model, ("policy", "reference", "value", "ppo_policy", "ppo_value"))
prompts = [{"prompt": f"w{i} w{i + 1} w{i + 2}"} for i in range(24)]
engine = RLHFEngine(policy, reference, None, value, ppo_policy, ppo_value, prompts=prompts, rewards=[few_distinct_words])
engine.set_relay_sample_fn(relay_sample_fn)
"""
ROLLOUT = ("models.policy.max_new_tokens=16", "models.policy.enforce_eager=true", "models.policy.dtype=float32")
"""Options of a run that has one."""
RUNTIME = {"num_episode": 3, "sample_per_episode": 16, "train_micro_batch_size": 8, "train_global_batch_size": 16}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"), layers=2)


@pytest.fixture
def place(tmp_path: Path, model: Path) -> Iterator[Place]:
    """Its run file has the models that every run has; tests add to it by --set."""
    models = {
        "policy": {"model": str(model), "seq_length": 64},
        "ppo_policy": {"lr": 1e-2, "dtype": "float32"},
    }
    there = Place(tmp_path, yaml.safe_dump({"runtime": RUNTIME, "models": models}), stand_ins=False)
    (tmp_path / "program.py").write_text(PROGRAM)
    yield there
    assert there.kill_all() == {}


def run(place: Place, *options: str, app: bool = False) -> dict[str, list[dict]]:
    """The lines of the run's files, by name; the run must succeed."""
    settings = [part for option in options for part in ("--set", option)]
    program = ["--app", "program:engine"] if app else []
    process = place.start("run", "run.yaml", "--run-id", "a", *program, *settings)
    output, errors = process.communicate(timeout=800)
    assert process.returncode == 0, output + errors
    folder = place.runs / "a"
    return {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.jsonl")}


def test_the_page_s_relay_program_trains_policy_and_critic_by_ppo(place: Place) -> None:
    roles = ("models.reference={}", "models.value={}", 'models.ppo_value={"dtype": "float32", "lr": 0.01}')
    held_out = ("prompts.source=app", "prompts.holdout=8", "runtime.eval_episode_interval=2")
    files = run(place, *ROLLOUT, *roles, *held_out, "runtime.max_relay_episode=2", app=True)
    episodes = files["metrics.jsonl"]
    assert [episode["relay/samples"] for episode in episodes] == [16, 32, 32]
    assert abs(episodes[0]["mismatch_kl"]) < 1e-4
    assert abs(episodes[0]["reference_kl"]) < 1e-4 < episodes[-1]["reference_kl"], "the policy leaves the reference"
    assert all(episode["value_loss"] > 0 and episode["value_grad_norm"] > 0 for episode in episodes)
    assert all("explained_variance" in episode and episode["kl_coef"] == pytest.approx(0.02) for episode in episodes)
    assert [episode["sample_age_max"] for episode in episodes] == [0, 1, 1]
    assert [row["finished_episodes"] for row in files["evaluations.jsonl"]] == [0, 2]
    assert all(0 <= row["reward"] <= 1 for row in files["evaluations.jsonl"])


def test_sft_learns_given_answers_without_any_rollout(place: Place) -> None:
    numbers = random.Random(0).choices(range(9), k=64)
    records = [{"prompt": f"w{i} w{i + 1}", "completion": f"w{i + 2} w{i + 2}"} for i in numbers]
    (place.directory / "answers.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    data = ("algorithm.name=sft", "prompts.source=jsonl", "prompts.path=answers.jsonl", "prompts.holdout=16")
    files = run(place, *data, "runtime.eval_episode_interval=3", "runtime.num_training_epoch=2")
    before, after = files["evaluations.jsonl"]
    assert after["global_step"] == 6 and after["loss"] < before["loss"] - 0.5
    assert {path.stem for path in (place.runs / "a" / "logs").iterdir()} == {"store", "buffer", "trainer", "coordinator"}
    assert list((place.runs / "a" / "export").glob("*.safetensors"))


@pytest.mark.parametrize("algorithm", ["dpo", "reward_model"])
def test_given_pairs_are_learned_and_told_apart_where_they_were_held_out(place: Place, algorithm: str) -> None:
    numbers = random.Random(0).choices(range(6), k=64)
    records = [{"prompt": f"w{i} w{i + 1}", "chosen": f"w{i} w{i}", "rejected": f"w{i + 300} w{i}"} for i in numbers]
    (place.directory / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    data = (f"algorithm.name={algorithm}", "prompts.source=jsonl", "prompts.path=pairs.jsonl", "prompts.holdout=16")
    roles = ("models.reference={}",) if algorithm == "dpo" else ()
    steps = ("runtime.eval_episode_interval=3", "runtime.num_training_epoch=4", "models.ppo_policy.lr=0.003")
    files = run(place, *data, *roles, *steps)
    before, after = files["evaluations.jsonl"]
    assert after["loss"] < before["loss"] and after["margin"] > before["margin"] + 0.1
    assert after["accuracy"] > 0.8  # the 16 pairs are of six kinds: a coin for each kind gets there one time in eight


def test_online_dpo_learns_from_a_reward_model_in_processes_of_its_own(place: Place) -> None:
    judge = make_model(place.directory / "judge", layers=2, labels=1, seed=1)
    prompts = [json.dumps({"prompt": f"w{i} w{i + 1}"}) + "\n" for i in range(24)]
    (place.directory / "prompts.jsonl").write_text("".join(prompts))
    reward = json.dumps({"model": str(judge), "group": "scorers", "dtype": "float32"})
    roles = (*ROLLOUT, "algorithm.name=online_dpo", "models.reference={}", f"models.reward={reward}")
    data = ("prompts.source=jsonl", "prompts.path=prompts.jsonl", "rewards.model_weight=2")
    steps = ("runtime.num_inference_per_prompt=4", "runtime.num_training_epoch=3", "models.ppo_policy.lr=0.003")
    files = run(place, *roles, *data, *steps)
    services = {"store", "buffer", "rollout-0", "trainer", "trainer-scorers", "coordinator"}
    assert {path.stem for path in (place.runs / "a" / "logs").iterdir()} == services
    for episode in files["metrics.jsonl"]:
        assert episode["reward_std"] > 0 and episode["reward_mean"] == pytest.approx(2 * episode["reward/reward_model"])
        assert episode["paired_fraction"] == pytest.approx(1)  # every group has answers of different scores
    first, *_, last = files["steps.jsonl"]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4), "the policy is the reference still"
    assert abs(first["margin"]) < 1e-4 < 0.01 < last["margin"] and last["accuracy"] > 0.5
