"""Checkpoints are written behind the run, and nothing counts on one before it is whole."""

import asyncio

import pytest
from harness import ENGINE, config, digits_count, place, questions, until

from baton.clients import LedgerClient
from baton.engine import Engine
from baton.errors import ConflictError, InvalidRequestError
from baton.testing import FakeTrainer
from services.coordinator.state import Life, RunState

EVERY = {"save_episode_interval": 1}


class Recording(FakeTrainer):
    """Notes in which order steps, saves and their ends come."""

    def __init__(self, writing_s: float, **options) -> None:
        super().__init__(**options)
        self.writing_s, self.order = writing_s, []
        self.written_after = ""
        """What must be noted before the first checkpoint is whole."""

    async def _step(self, request):
        response = await super()._step(request)
        self.order.append(f"step {response.global_step}")
        return response

    async def SaveCheckpoint(self, request, context):
        self.order.append(f"save {self.global_step}")
        assert request.background
        self.keep = request.keep
        return await super().SaveCheckpoint(request, context)

    async def AwaitCheckpoint(self, request, context):
        await until(lambda: not self.written_after or self.written_after in self.order)
        answer = await super().AwaitCheckpoint(request, context)
        self.order.append(f"whole {request.path.rpartition('-')[2]}")
        return answer


async def test_the_run_goes_on_while_a_checkpoint_is_written_and_the_next_save_waits_for_it(buffer, run_id, tmp_path):
    trainer = Recording(writing_s=0.5)
    trainer.written_after = "step 4"
    run = config(runtime=EVERY | {"keep_checkpoints": 2})
    async with place(buffer.address, tmp_path, trainer=trainer, run=run) as there:
        state = await there.run(run_id)
    assert (state.life, trainer.keep) == (Life.SUCCEEDED, 2)
    order = trainer.order
    assert order.index("step 4") < order.index("whole 2") < order.index("save 4")
    assert order[-2:] == ["save 6", "whole 6"]
    assert state.checkpoint.endswith("step-6")


async def test_samples_are_freed_and_the_state_names_a_checkpoint_only_once_it_is_whole(buffer, run_id, tmp_path):
    held, named = [], []

    class Watching(Recording):
        async def AwaitCheckpoint(self, request, context):
            answer = await super().AwaitCheckpoint(request, context)
            async with LedgerClient(buffer.address) as ledger:
                held.append([episode.episode_id for episode in await ledger.list_episodes(run_id)])
            named.append(there.coordinator.get_run().state.checkpoint)
            return answer

    run = config(runtime=EVERY, store={"ack_on": "checkpoint"})
    async with place(buffer.address, tmp_path, trainer=Watching(writing_s=0.3), run=run) as there:
        state = await there.run(run_id)
    assert state.life is Life.SUCCEEDED
    assert [episodes[0] for episodes in held] == [0, 1, 2], "an episode is there until its checkpoint is whole"
    assert [path.rpartition("-")[2] for path in named] == ["", "2", "4"]
    async with LedgerClient(buffer.address) as ledger:
        assert await ledger.list_episodes(run_id) == []


async def test_a_checkpoint_that_fails_in_the_background_fails_the_run_within_an_episode(buffer, run_id, tmp_path):
    trainer = Recording(writing_s=0.0)
    trainer.write_error = InvalidRequestError("cannot write it: no space is left")
    run = config(runtime={"num_episode": 9, "save_episode_interval": 3})
    async with place(buffer.address, tmp_path, trainer=trainer, run=run) as there:
        state = await there.run(run_id)
    assert state.life is Life.FAILED
    assert "cannot write it: no space is left" in state.error
    assert state.checkpoint == ""
    assert trainer.global_step == 8, "two steps an episode: the checkpoint after three failed during the fourth"


async def test_a_stopped_run_waits_for_the_checkpoint_that_is_being_written(buffer, run_id, tmp_path):
    trainer = Recording(writing_s=0.6, delay_s=0.2)
    run = config(runtime=EVERY | {"num_episode": 9})
    async with place(buffer.address, tmp_path, trainer=trainer, engine=ENGINE, run=run) as there:
        there.coordinator.start_run(run_id)
        await until(lambda: "step 3" in trainer.order)
        there.coordinator.stop_run(run_id, save_checkpoint=False)
        state = (await there.finish())[-1].state
    assert (state.life, state.error) == (Life.STOPPED, "")
    assert state.checkpoint.endswith("step-2")


def failing_after(trainer, meanwhile=None, error=LookupError):
    """An app whose flow raises once a checkpoint is being written, after what happens `meanwhile`."""

    async def flow(context, prompts):
        if trainer.checkpoints:
            if meanwhile:
                await meanwhile()
            raise error("oops")
        async for group in digits_count(context, prompts):
            yield group

    return Engine(prompts=questions, flow=flow)


@pytest.mark.parametrize("write_error", [None, InvalidRequestError("cannot write it: no space is left")])
async def test_a_run_that_fails_waits_for_the_checkpoint_that_is_being_written_and_tells_its_first_error(
    buffer, run_id, tmp_path, write_error
):
    trainer = Recording(writing_s=1.0)
    trainer.write_error = write_error
    run = config(runtime=EVERY, store={"ack_on": "checkpoint"})
    async with place(buffer.address, tmp_path, trainer=trainer, engine=failing_after(trainer), run=run) as there:
        state = await there.run(run_id)
    assert (state.life, state.checkpoint.rpartition("-")[2]) == (Life.FAILED, "" if write_error else "2")
    assert state.error.startswith("episode 1, generate: LookupError: oops")
    async with LedgerClient(buffer.address) as ledger:
        stored = RunState.from_json((await ledger.get_state(run_id, "coordinator"))[0])
    assert (stored.checkpoint, stored.error) == (state.checkpoint, state.error)


async def test_a_run_that_fails_waits_for_no_checkpoint_of_a_trainer_that_is_gone(buffer, run_id, tmp_path):
    async def trainer_dies():
        await there.trainer.kill()

    trainer = Recording(writing_s=60.0)
    engine = failing_after(trainer, trainer_dies)
    async with place(buffer.address, tmp_path, trainer=trainer, engine=engine, run=config(runtime=EVERY)) as there:
        there.coordinator.start_run(run_id)
        state = (await there.finish(30))[-1].state
    assert (state.life, state.checkpoint) == (Life.FAILED, "")
    assert "LookupError: oops" in state.error


async def test_a_run_that_somebody_else_has_changed_waits_for_no_checkpoint_and_frees_nothing(buffer, run_id, tmp_path):
    trainer = Recording(writing_s=1.0)
    run, engine = config(runtime=EVERY, store={"ack_on": "checkpoint"}), failing_after(trainer, error=ConflictError)
    async with place(buffer.address, tmp_path, trainer=trainer, engine=engine, run=run) as there:
        state = await there.run(run_id)
    assert (state.life, state.checkpoint) == (Life.FAILED, "")
    async with LedgerClient(buffer.address) as ledger:
        assert [episode.episode_id for episode in await ledger.list_episodes(run_id)] == [0, 1]


async def test_closing_cuts_off_the_checkpoint_that_a_failed_run_waits_for(buffer, run_id, tmp_path, monkeypatch):
    monkeypatch.setattr("services.coordinator.coordinator.STOP_GRACE_S", 0.5)
    trainer = Recording(writing_s=60.0)
    run = config(runtime=EVERY)
    async with place(buffer.address, tmp_path, trainer=trainer, engine=failing_after(trainer), run=run) as there:
        there.coordinator.start_run(run_id)
        await until(lambda: there.coordinator.get_run().state.error != "")
        await asyncio.wait_for(there.coordinator.close(), 20)
        state = (await there.finish(20))[-1].state
    assert (state.life, state.checkpoint) == (Life.FAILED, "")
    assert "LookupError: oops" in state.error


async def test_a_checkpoint_in_the_midst_of_an_episode_takes_the_place_of_none_that_a_run_can_go_on_from(
    buffer, run_id, tmp_path
):  # fmt: skip
    trainer = Recording(writing_s=0.0, delay_s=0.2)
    run = config(runtime=EVERY | {"num_episode": 9, "keep_checkpoints": 1})
    async with place(buffer.address, tmp_path, trainer=trainer, engine=ENGINE, run=run) as there:
        there.coordinator.start_run(run_id)
        await until(lambda: "step 3" in trainer.order)
        kept = trainer.keep
        there.coordinator.stop_run(run_id, save_checkpoint=True)
        state = (await there.finish())[-1].state
    assert (state.life, state.error) == (Life.STOPPED, "")
    assert (kept, trainer.keep) == (1, 0), "0: all are left"
