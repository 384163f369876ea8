"""A run's first version: the next number after whatever its replicas serve already, and none is trained on before it."""

import asyncio

import pytest
from harness import config, place, until

from baton.clients.rollout_control import RolloutControlClient
from baton.errors import RunFailedError
from baton.testing import FakeRollout, FakeTrainer
from services.coordinator.resuming import Resume
from services.coordinator.state import Life


class Dies(FakeTrainer):
    async def _step(self, request):
        raise RunFailedError("the machine is gone")


def versions(trainer):
    return [int(samples.policy_version_max[0]) for samples in trainer.trained]


async def test_a_run_begins_after_the_versions_that_its_replicas_serve_of_another_run(buffer, run_id, tmp_path):
    replica, new, trainer = FakeRollout(), FakeRollout(), FakeTrainer()
    async with place(buffer.address, tmp_path / "a", rollouts=(replica,)) as there:
        assert (await there.run(f"{run_id}-a")).policy_version == replica.policy_version == 4
    async with place(buffer.address, tmp_path / "b", trainer=trainer, rollouts=(replica, new)) as there:
        state = await there.run(f"{run_id}-b")
        rows = there.rows()
    assert (state.life, state.policy_version) == (Life.SUCCEEDED, 8), state.error
    assert [update.policy_version for update in new.updates] == [5, 6, 7, 8]
    assert versions(trainer) == [5, 5, 6, 6, 7, 7]
    assert [row["policy_version"] for row in rows] == [5, 6, 7]
    assert sorted(state.digests) == [0, 5, 6, 7, 8]


async def test_a_version_1_of_other_weights_is_not_taken_for_the_runs_own(buffer, run_id, tmp_path):
    replica, trainer = FakeRollout(), FakeTrainer()
    async with place(buffer.address, tmp_path / "a", trainer=Dies(), rollouts=(replica,)) as there:
        assert (await there.run(f"{run_id}-a")).life is Life.FAILED
    assert replica.policy_version == 1
    trainer.global_step = 7
    run = config(models={"policy": {"sync_frequency": 2}})
    async with place(buffer.address, tmp_path / "b", trainer=trainer, rollouts=(replica,), run=run) as there:
        state = await there.run(f"{run_id}-b")
    assert (state.life, state.policy_version) == (Life.SUCCEEDED, 3), state.error
    assert versions(trainer) == [2, 2, 2, 2, 3, 3]


class NotReadyYet(FakeRollout):
    """Says what it serves once it may `go` on."""

    def __init__(self):
        super().__init__()
        self.go = asyncio.Event()

    async def GetStatus(self, request, context):
        await self.go.wait()
        return await super().GetStatus(request, context)


@pytest.mark.parametrize("served", [0, 4])
async def test_a_run_that_was_stopped_before_its_first_version_begins_with_it(buffer, run_id, tmp_path, served):
    paused, replica, trainer = FakeRollout(), FakeRollout(), FakeTrainer()
    async with place(buffer.address, tmp_path, rollouts=(paused,)) as there:
        async with RolloutControlClient(there.rollouts[0].address) as client:
            await client.pause()
        there.coordinator.start_run(run_id)
        run = there.coordinator.run
        await until(lambda: run.driver.state.phase == "publish")
        run.stop(save_checkpoint=True)
        await run.close(grace_s=5)
        assert run.driver.state.life is Life.STOPPED, run.driver.state.error
    replica.policy_version = served
    async with place(buffer.address, tmp_path, trainer=trainer, rollouts=(replica,)) as there:
        there.coordinator.start_run(run_id, Resume())
        state = (await there.finish())[-1].state
    assert (state.life, state.policy_version) == (Life.SUCCEEDED, served + 4), state.error
    assert versions(trainer) == [served + 1 + step // 2 for step in range(6)]
    assert all(digest for samples in trainer.trained for digest in samples.weights_digests)


@pytest.mark.parametrize("resumed", [False, True])
async def test_a_stop_before_the_run_has_what_it_needs_saves_nothing(buffer, run_id, tmp_path, resumed):
    """The trainer's weights are not the run's yet."""
    if resumed:
        async with place(buffer.address, tmp_path, run=config(runtime={"num_episode": 1})) as there:
            assert (await there.run(run_id)).life is Life.SUCCEEDED
    before, waiting = sorted(tmp_path.glob("checkpoints/*")), NotReadyYet()
    async with place(buffer.address, tmp_path, rollouts=(waiting,)) as there:
        there.coordinator.start_run(run_id, Resume() if resumed else None)
        state = there.coordinator.run.driver.state
        await until(lambda: state.waiting_for.startswith("rollout"))
        there.coordinator.stop_run(run_id, save_checkpoint=True)
        assert (await there.finish())[-1].state.life is Life.STOPPED, state.error
        waiting.go.set()
    assert sorted(tmp_path.glob("checkpoints/*")) == before
    assert len(before) == resumed
