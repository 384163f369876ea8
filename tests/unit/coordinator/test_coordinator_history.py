"""What the store keeps of the relay history for a run that is resumed."""

import json
from dataclasses import replace

from harness import config, digits_count, place, questions
from sittings import RELAYED, Dies, rows, sit, trained

from baton.clients import LedgerClient, RelayClient
from baton.engine import Engine
from baton.run_checkpoints import run_checkpoints
from baton.testing import FakeTrainer
from services.coordinator.resuming import Resume
from services.coordinator.state import STATE_NAME, Life


async def history_of(buffer, run_id):
    async with RelayClient(buffer.address) as client:
        return [kept.episode_id for kept in await client.list_history(run_id)]


async def test_of_the_history_beyond_the_limit_only_what_the_newest_checkpoint_needs_stays(buffer, run_id, tmp_path):
    sections = {"runtime": RELAYED["runtime"] | {"num_episode": 20, "save_episode_interval": 4, "max_relay_episode": 2}}
    await sit(buffer, run_id, tmp_path, Dies(15), sections)
    assert await history_of(buffer, run_id) == [3, 6, 7], "a run from before episode 4 shows 3 again, this one 6 and 7"


async def test_history_that_a_checkpoint_needs_stays_from_the_moment_that_it_is_being_written(buffer, run_id, tmp_path):
    sections = {"runtime": RELAYED["runtime"] | {"num_episode": 20, "save_episode_interval": 2, "max_relay_episode": 2}}
    trainer = Dies(10)
    async with place(buffer.address, tmp_path, trainer=trainer, run=config(**sections)) as there:
        there.coordinator.start_run(run_id)
        async for event in there.coordinator.watch_run():
            if event.state.checkpoint:
                trainer.writing_s = 60  # the one before episode 4 is not whole before the run fails
                break
        async for event in there.coordinator.watch_run():
            if event.state.episode == 5 and event.state.phase == "train":
                break
        assert await history_of(buffer, run_id) == [1, 3, 4, 5]


async def test_history_that_only_a_checkpoint_needs_is_not_shown_when_there_is_room_again(buffer, run_id, tmp_path):
    """Episodes 3 and 4 are so large that there is room for one of them, and then for the checkpoint's small ones."""
    given = []

    def newest(buffers):
        given.append([buffer.episode_id for buffer in buffers])
        return buffers[-1].buffer

    async def two_large(context, prompts):
        async for group in digits_count(context, prompts):
            large = [json.dumps("x" * 1000)] * len(group.samples)
            yield replace(group, samples=replace(group.samples, metadata=large)) if context.episode_id in (3, 4) else group

    engine = Engine(prompts=questions, flow=two_large)
    engine.set_relay_sample_fn(newest)
    sections = {
        "runtime": {"num_episode": 6, "save_episode_interval": 3, "max_relay_episode": -1},
        "store": {"relay_max_bytes": 16_000, "relay_when_full": "evict"},
    }  # fmt: skip
    state = await sit(buffer, run_id, tmp_path, FakeTrainer(), sections, engine=engine)
    assert (state.life, given[:3], given[-2:]) == (Life.SUCCEEDED, [[0], [0, 1], [0, 1, 2]], [[4], [4, 5]])
    assert await history_of(buffer, run_id) == [0, 1, 2, 4, 5]


async def test_a_checkpoint_whose_history_was_evicted_is_refused_before_anything_changes(buffer, run_id, tmp_path):
    sections = {"runtime": RELAYED["runtime"] | {"num_episode": 8, "max_relay_episode": 3}}
    first, second = FakeTrainer(), FakeTrainer()
    await sit(buffer, run_id, tmp_path, first, sections)
    async with LedgerClient(buffer.address) as ledger:
        before = await ledger.get_state(run_id, STATE_NAME)
        state = await sit(buffer, run_id, tmp_path, second, sections, Resume(4))
        assert before == await ledger.get_state(run_id, STATE_NAME)
    assert state.life is Life.FAILED
    assert "would have the relay function see episodes 0 to 1 again, which the store has evicted" in state.error
    assert "set runtime.load_data_checkpoint_iteration to one of 12, 16, or leave it out for the newest" in state.error
    assert [one.global_step for one in run_checkpoints(tmp_path)] == [4, 8, 12, 16]
    assert (len(rows(tmp_path)), second.global_step) == (8, 0)


async def test_an_earlier_checkpoint_whose_history_is_still_there_may_be_named(buffer, run_id, tmp_path):
    sections = {"runtime": RELAYED["runtime"] | {"num_episode": 8, "max_relay_episode": 3}}
    first, second = FakeTrainer(), FakeTrainer()
    await sit(buffer, run_id, tmp_path, first, sections)
    state = await sit(buffer, run_id, tmp_path, second, sections, Resume(12))
    assert state.life is Life.SUCCEEDED, state.error
    assert trained(first.trained[:12], second.trained) == trained(first.trained)
