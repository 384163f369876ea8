"""Where a run's metrics go: JSON lines, TensorBoard's own reader finds them, and Weights & Biases only if it is there."""

import importlib.util
import json

import pytest
from harness import ENGINE, config, place
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from baton.errors import ConfigError
from baton.testing import FakeTrainer
from services.coordinator.connections import Addresses
from services.coordinator.coordinator import Coordinator
from services.coordinator.state import Life


def measure(global_step, samples):
    return {"loss": 0.5 / global_step, "grad_norm": float(global_step), "explained_variance": float("nan")}


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


async def run(buffer, run_id, folder, **sections):
    async with place(buffer.address, folder, trainer=FakeTrainer(measure), run=config(**sections)) as there:
        there.coordinator.start_run(run_id)
        state = (await there.finish())[-1].state
    assert state.life is Life.SUCCEEDED, state.error


async def test_every_episode_and_every_step_are_json_lines_and_tensorboard_events(buffer, run_id, tmp_path):
    await run(buffer, run_id, tmp_path)
    episodes, steps = rows(tmp_path / "metrics.jsonl"), rows(tmp_path / "steps.jsonl")
    places = [(step["global_step"], step["episode"], step["pass"], step["step"]) for step in steps]
    assert places == [(1, 0, 0, 0), (2, 0, 0, 1), (3, 1, 0, 0), (4, 1, 0, 1), (5, 2, 0, 0), (6, 2, 0, 1)]
    assert [step["grad_norm"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert "explained_variance" not in steps[0]  # what is not finite is no JSON, and absent
    assert [episode["sample_age_max"] for episode in episodes] == [0, 0, 0]

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    drawn = [(event.step, event.value) for event in events.Scalars("step/grad_norm")]
    assert drawn == [(step, float(step)) for step in range(1, 7)]
    drawn = [(event.step, event.value) for event in events.Scalars("episode/reward_mean")]
    assert drawn == [(episode["episode"], pytest.approx(episode["reward_mean"])) for episode in episodes]


async def test_tensorboard_can_be_left_out(buffer, run_id, tmp_path):
    await run(buffer, run_id, tmp_path, runtime={"num_episode": 1}, logging={"tensorboard": False})
    assert not (tmp_path / "tensorboard").exists()


async def test_relayed_samples_have_the_age_of_their_weights(buffer, run_id, tmp_path):
    await run(buffer, run_id, tmp_path, runtime={"max_relay_episode": -1, "relay_sample_fn": "concat"})
    assert [row["sample_age_max"] for row in rows(tmp_path / "metrics.jsonl")] == [0, 1, 2]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed here")
async def test_wandb_that_is_asked_for_and_missing_stops_the_start_and_says_how_to_go_on(tmp_path):
    addresses = Addresses("127.0.0.1:1", "127.0.0.1:1", ("127.0.0.1:1",))
    with pytest.raises(ConfigError, match=r"logging.wandb_project: got \"?'?p.*not installed.*pip install wandb"):
        Coordinator(
            config(logging={"wandb_project": "p"}), ENGINE, addresses, output_dir=tmp_path, dashboard_url="http://here/"
        )


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed here")
async def test_wandb_gets_what_metrics_jsonl_gets(buffer, run_id, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    await run(buffer, run_id, tmp_path, logging={"wandb_project": "p"})
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
