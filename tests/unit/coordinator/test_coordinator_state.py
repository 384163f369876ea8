"""The run's record: JSON both ways, and one coordinator per run."""

import asyncio
import time

import pytest

from baton.clients import LedgerClient
from baton.errors import ConflictError, RunFailedError, StoreUnavailableError
from services.coordinator.clock import PhaseClock
from services.coordinator.connections import until_ready
from services.coordinator.events import EventLog
from services.coordinator.state import KEPT_DIGESTS, MOST_DIGESTS, Life, RunState, StateStore


def test_the_state_survives_json():
    state = RunState("r", 3, "/out", life=Life.RUNNING, episode=2, prompts_consumed=16, global_step=9)
    state.published(1, "abc")
    assert RunState.from_json(state.to_json()) == state


def test_old_digests_are_dropped_before_the_value_outgrows_the_store():
    state = RunState("r", 3, "/out")
    for version in range(1, KEPT_DIGESTS + 10):
        state.published(version, "f" * 64)
    assert sorted(state.digests)[:2] == [0, 10], "a sample that no weights made is of version 0"
    assert len(state.to_json()) < 2**20


def test_digests_of_what_the_history_shows_are_kept_until_they_outgrow_the_store():
    state = RunState("r", 3, "/out", history_version=7)
    for version in range(1, MOST_DIGESTS + 7):
        state.published(version, "f" * 64)
    assert sorted(state.digests)[:2] == [0, 7]
    assert len(state.to_json()) < 2**20
    with pytest.raises(RunFailedError, match=r"shows samples of policy version 7, .* 13000 versions .*relay_max_bytes"):
        state.published(MOST_DIGESTS + 7, "f" * 64)
    assert RunState.from_json(state.to_json()) == state


async def test_a_second_coordinator_of_the_same_run_is_refused(buffer, run_id):
    async with LedgerClient(buffer.address) as client:
        state = RunState(run_id, 3, "/out", life=Life.RUNNING, episode=1)
        first = StateStore(client, run_id)
        await first.claim(state)
        await first.save(state)
        with pytest.raises(ConflictError, match=rf"{run_id}' exists already \(running, episode 1 of 3, files in /out\)"):
            await StateStore(client, run_id).claim(state)
        assert RunState.from_json((await client.get_state(run_id, "coordinator"))[0]) == state


class LosesAnswers(LedgerClient):
    """Puts what it is given, but its first answers do not come."""

    lost = 0

    async def put_state(self, *arguments, **options):
        revision = await super().put_state(*arguments, **options)
        if self.lost < 2:
            self.lost += 1
            raise StoreUnavailableError("the store did not answer within 30 s")
        return revision


async def test_a_claim_whose_answer_was_lost_is_made_again_and_is_no_other_coordinator_s(buffer, run_id):
    async with LosesAnswers(buffer.address) as client:
        state = RunState(run_id, 3, "/out")
        ours = StateStore(client, run_id)
        await until_ready("the buffer", lambda: ours.claim(state), 10)
        assert (client.lost, ours.is_ours) == (2, True)
        with pytest.raises(ConflictError, match=rf"{run_id}' exists already \(starting, episode 0 of 3, files in /out\)"):
            await StateStore(client, run_id).claim(RunState(run_id, 3, "/out"))
        await ours.save(state)


async def test_watchers_get_every_event_however_late_they_come():
    log, state = EventLog(), RunState("r", 1, "/out")
    log.append(state)

    async def watch():
        return [event.state.episode async for event in log.follow()]

    early = asyncio.create_task(watch())
    await asyncio.sleep(0)
    for episode in (1, 2):
        state.episode = episode
        log.append(state)
        await asyncio.sleep(0)
    state.life = Life.SUCCEEDED
    log.append(state)
    assert await early == await watch() == [0, 1, 2, 2]


async def test_phases_do_not_overlap_and_watchers_are_told():
    log, state = EventLog(), RunState("r", 1, "/out")
    clock = PhaseClock(state, log)
    begun = time.monotonic()
    clock.enter("generate", "rollout at a")
    await asyncio.sleep(0.05)
    clock.enter("train", "trainer at b")
    await asyncio.sleep(0.02)
    clock.enter("")
    took = time.monotonic() - begun
    await asyncio.sleep(0.05)
    first = clock.lap()
    assert first["generate"] > 0.04 and first["train"] > 0.01
    assert sum(first.values()) < took, "they do not overlap, and nothing counts between phases"
    assert clock.lap() == {}
    state.life = Life.STOPPED
    log.append(state)
    told = [(event.state.phase, event.state.waiting_for) async for event in log.follow()]
    assert told == [("generate", "rollout at a"), ("train", "trainer at b"), ("", "")]
