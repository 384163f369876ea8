"""A run's first version: the next number after whatever its replicas serve already, and none is trained on before it."""

from harness import config, place

from baton.errors import RunFailedError
from baton.testing import FakeRollout, FakeTrainer
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
