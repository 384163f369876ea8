"""What an episode's report says, against numbers worked out by hand, and how the death of a service is noticed."""

import asyncio
import json
import math

import numpy as np
import pytest

from baton.engine import Group, PromptItem
from baton.errors import ServiceUnavailableError
from baton.samples import FinishReason, Ragged, RewardStatus, Samples
from baton.testing import FakeRollout, serve
from services.coordinator import liveness
from services.coordinator.report import EpisodeReport, EpisodeTally, RunReport
from services.coordinator.state import Life, RunState


def group(rewards, lengths, finish, statuses):
    size = len(rewards)
    samples = Samples(
        [f"g/{i}" for i in range(size)],
        response_ids=Ragged.of([[1] * length for length in lengths], np.int32),
        finish_reasons=np.asarray(finish, np.uint8),
        rewards=np.asarray(rewards, np.float32),
        reward_status=np.asarray(statuses, np.uint8),
    )
    return Group(PromptItem("g", [], ""), samples, [""] * size, {"f": np.asarray(rewards)})


def test_metrics_are_those_of_the_episode():
    stop, cut = FinishReason.STOP, FinishReason.LENGTH
    tally = EpisodeTally()
    tally.add_group(group([1, 0], [2, 4], [stop, cut], [RewardStatus.VALUE] * 2))
    tally.add_group(group([2, math.nan], [6, 8], [stop, stop], [RewardStatus.VALUE, RewardStatus.ERROR]))
    tally.add_step({"loss": 2.0, "grad_norm": 1.0}, computed_tokens=10)
    tally.add_step({"loss": 4.0}, computed_tokens=20)
    metrics = tally.metrics({"generate": 2.0, "train": 3.0}, None)
    assert metrics == pytest.approx({
        "samples": 4, "scored_samples": 3, "reward_mean": 1.0, "reward_std": math.sqrt(2 / 3),
        "reward_abstained": 0.0, "reward_failed": 0.25, "reward/f": 1.0,
        "response_length_mean": 5.0, "response_tokens": 20, "finish_rate": 0.75, "truncated_share": 0.25,
        "loss": 3.0, "grad_norm": 1.0, "train_steps": 2, "computed_tokens": 30,
        "seconds/generate": 2.0, "seconds/train": 3.0, "seconds/episode": 5.0,
        "tokens_per_s": 4.0, "rollout_tokens_per_s": 10.0,
    })  # fmt: skip


def test_an_episode_without_any_reward_has_no_mean_and_its_line_is_still_json(tmp_path):
    tally = EpisodeTally()
    tally.add_group(group([math.nan], [1], [FinishReason.STOP], [RewardStatus.TIMEOUT]))
    report = RunReport(tmp_path)
    report.add(EpisodeReport(0, 1, "abc", tally.metrics({"generate": 1.0}, None)))
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert "reward_mean" not in line and line["scored_samples"] == 0
    report.finish(RunState("r", 1, str(tmp_path), life=Life.FAILED, error="why"), {}, "")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["first_reward_mean"], summary["state"], summary["error"]) == (None, "failed", "why")
    assert not (tmp_path / "reward.png").exists()


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(liveness, "INTERVAL_S", 0.1)


async def test_a_service_that_is_gone_is_named(hurried):
    async with serve(FakeRollout()) as served:
        watching = asyncio.create_task(liveness.watch({"rollout 0": served.address}))
        await asyncio.sleep(0.3)
        assert not watching.done()
        await served.kill()
        with pytest.raises(ExceptionGroup) as gone:
            await asyncio.wait_for(watching, 30)
    (error,) = gone.value.exceptions
    assert isinstance(error, ServiceUnavailableError)
    assert f"rollout 0 at {served.address} is gone: connection refused" in str(error)


@pytest.fixture
def looks(monkeypatch):
    """Has so many looks happen, and returns; there are no others."""
    real, turns, looked = liveness.look, asyncio.Queue(), asyncio.Queue()

    async def in_turn(address):
        await turns.get()
        try:
            await real(address)
        finally:
            looked.put_nowait(address)

    async def happen(count):
        for _ in range(count):
            turns.put_nowait("look")
            await looked.get()

    monkeypatch.setattr(liveness, "look", in_turn)
    return happen


async def test_missed_looks_are_forgiven_unless_they_are_in_a_row(hurried, looks):
    async with serve(FakeRollout()) as served:
        watching = asyncio.create_task(liveness.watch({"rollout 0": served.address}))
        await looks(1)
    for _ in range(3):
        await looks(liveness.MISSES - 1)
        async with serve(FakeRollout(), port=int(served.address.rpartition(":")[2])):
            await looks(1)
    await asyncio.sleep(0.2)
    assert not watching.done()
    watching.cancel()
