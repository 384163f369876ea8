"""Whole runs whose replicas die and come back: nothing is lost, nothing is taken twice, and no old weights are served."""

import asyncio
import re
import time
from collections import Counter
from contextlib import asynccontextmanager

import pytest
from harness import AnswersOnce, config, place, until

from baton.api.rollout.v1 import control_pb2
from baton.clients import LedgerClient
from baton.errors import ServiceFaultError
from baton.testing import FakeRollout, FakeTrainer, serve
from services.coordinator.replicas import ReplicaHealth
from services.coordinator.state import Life


@asynccontextmanager
async def again(served, fake):
    """The same address, served by another process: `fake` is at version 0."""
    async with serve(fake, port=int(served.address.rpartition(":")[2])) as reborn:
        yield reborn


def trained_once(trainer):
    """Every sample's id, which must not occur twice."""
    ids = Counter(sample_id for samples in trainer.trained for sample_id in samples.sample_ids)
    assert set(ids.values()) == {1}
    return set(ids)


async def faults(buffer, run_id):
    async with LedgerClient(buffer.address) as client:
        return list((await client.audit(run_id)).faults)


async def test_a_killed_replica_is_done_without_and_serves_a_later_version_when_it_is_back(buffer, run_id, tmp_path, caplog):
    caplog.set_level("INFO", logger="services.coordinator")
    trainer, slow = FakeTrainer(), FakeRollout(delay_s=0.4)
    run = config(runtime={"num_episode": 6})
    async with place(buffer.address, tmp_path, trainer=trainer, rollouts=(slow, FakeRollout(delay_s=0.4)), run=run) as there:
        there.coordinator.start_run(run_id)
        await there.until("generate")
        await until(lambda: slow.requests)
        dead = there.rollouts[0]
        await dead.kill()
        replica = there.coordinator.run.driver.fleet.replicas[0]
        await until(lambda: replica.health is ReplicaHealth.DEAD)
        reborn = FakeRollout(delay_s=0.2)
        async with again(dead, reborn):
            state = (await there.finish())[-1].state
    assert state.life is Life.SUCCEEDED, state.error
    assert trained_once(trainer) == {f"e{e}-p{p}/{i}" for e in range(6) for p in (2 * e, 2 * e + 1) for i in range(4)}
    assert await faults(buffer, run_id) == []
    assert reborn.requests and all(request.exact_version > 1 for request in reborn.requests)
    assert (replica.health, replica.version) == (ReplicaHealth.HEALTHY, state.policy_version)
    told = [record.message.removeprefix(f"rollout at {dead.address}") for record in caplog.records]
    told = [line for line in told if line[0] in " :"]
    expected = (
        " died: .",
        ": its 1 unanswered groups go elsewhere",
        " is back with version 0, stale: .",
        " serves version [2-7]",
    )
    for line, pattern in zip(told, expected, strict=True):
        assert re.match(pattern, line), told


async def test_the_only_replica_is_waited_for_and_the_episode_goes_on_with_the_same_version(buffer, run_id, tmp_path):
    trainer, first = FakeTrainer(), FakeRollout(delay_s=60)
    async with place(buffer.address, tmp_path, trainer=trainer, rollouts=(first,)) as there:
        there.coordinator.start_run(run_id)
        await until(lambda: first.requests)
        await there.rollouts[0].kill()
        async with again(there.rollouts[0], FakeRollout()):
            state = (await there.finish())[-1].state
    assert (state.life, state.policy_version) == (Life.SUCCEEDED, 4), state.error
    assert [int(samples.policy_version_max[0]) for samples in trainer.trained] == [1, 1, 2, 2, 3, 3]
    trained_once(trainer)


async def test_a_version_that_is_lost_with_the_only_replica_is_followed_by_the_next_one(buffer, run_id, tmp_path):
    """The trainer has taken a step of the episode already: the weights that the other half was to come from are gone."""
    trainer, first = FakeTrainer(), AnswersOnce()
    run = config(runtime={"num_episode": 2})
    async with place(buffer.address, tmp_path, trainer=trainer, rollouts=(first,), run=run) as there:
        there.coordinator.start_run(run_id)
        await until(lambda: trainer.global_step == 1)
        await there.rollouts[0].kill()
        async with again(there.rollouts[0], FakeRollout()):
            state = (await there.finish())[-1].state
    assert state.life is Life.SUCCEEDED, state.error
    assert [int(samples.policy_version_max[0]) for samples in trainer.trained] == [1, 2, 3, 3]
    assert len({digest for samples in trainer.trained for digest in samples.weights_digests}) == 3
    trained_once(trainer)


async def test_a_replica_that_nobody_starts_again_ends_the_run_after_the_deadline(buffer, run_id, tmp_path):
    fake = FakeRollout(delay_s=60)
    run = config(deadlines={"restart_s": 1.0})
    async with place(buffer.address, tmp_path, rollouts=(fake,), run=run) as there:
        there.coordinator.start_run(run_id)
        await until(lambda: fake.requests)
        begun = time.monotonic()
        await there.rollouts[0].kill()
        state = (await there.finish())[-1].state
        address = there.rollouts[0].address
    assert state.life is Life.FAILED
    assert "episode 0, generate: no rollout replica serves, and none came back within 1 s" in state.error
    assert f"rollout at {address} is dead: connection refused" in state.error
    assert "raise deadlines.restart_s" in state.error
    assert time.monotonic() - begun < 40


class DiesInUpdate(FakeRollout):
    """Goes away in the middle of the update to version 2, as soon as `served` is known."""

    served = None

    async def UpdateWeights(self, request, context):
        if request.policy_version == 2:
            await self.served.kill()
        return await super().UpdateWeights(request, context)


async def test_an_update_that_a_replica_dies_in_begins_again_without_it(buffer, run_id, tmp_path):
    trainer, dying, living = FakeTrainer(), DiesInUpdate(), FakeRollout()
    async with place(buffer.address, tmp_path, trainer=trainer, rollouts=(dying, living)) as there:
        dying.served = there.rollouts[0]
        there.coordinator.start_run(run_id)
        state = (await there.finish())[-1].state
    assert (state.life, state.policy_version) == (Life.SUCCEEDED, 4), state.error
    assert living.policy_version == 4
    trained_once(trainer)


async def test_an_update_that_the_only_replica_dies_in_reaches_it_when_it_is_back(buffer, run_id, tmp_path):
    trainer, dying, reborn = FakeTrainer(), DiesInUpdate(), FakeRollout()
    async with place(buffer.address, tmp_path, trainer=trainer, rollouts=(dying,)) as there:
        dying.served = there.rollouts[0]
        there.coordinator.start_run(run_id)
        await until(lambda: there.coordinator.run.driver.fleet.replicas[0].health is ReplicaHealth.DEAD)
        async with again(there.rollouts[0], reborn):
            state = (await there.finish())[-1].state
    assert (state.life, state.policy_version, reborn.policy_version) == (Life.SUCCEEDED, 4, 4), state.error
    assert [int(samples.policy_version_max[0]) for samples in trainer.trained] == [1, 1, 2, 2, 3, 3]


async def test_the_only_replica_may_die_again_in_the_version_that_it_was_to_come_back_with(buffer, run_id, tmp_path):
    trainer, first, dying, reborn = FakeTrainer(), AnswersOnce(), DiesInUpdate(), FakeRollout()
    run = config(runtime={"num_episode": 2}, deadlines={"restart_s": 20.0})
    async with place(buffer.address, tmp_path, trainer=trainer, rollouts=(first,), run=run) as there:
        there.coordinator.start_run(run_id)
        await until(lambda: trainer.global_step == 1)
        await there.rollouts[0].kill()
        replica = there.coordinator.run.driver.fleet.replicas[0]
        async with again(there.rollouts[0], dying) as dying.served:
            await until(lambda: replica.deaths == 2, 20)
        async with again(there.rollouts[0], reborn):
            state = (await there.finish())[-1].state
    assert (state.life, state.policy_version, reborn.policy_version) == (Life.SUCCEEDED, 4, 4), state.error
    assert [int(samples.policy_version_max[0]) for samples in trainer.trained] == [1, 2, 3, 3]
    trained_once(trainer)


class DiesInCommit(FakeRollout):
    """Goes away when it is to commit version 2; what listens at its address from then on, until `is_back`, is silent."""

    served = None

    def __init__(self):
        super().__init__()
        self.is_back = asyncio.Event()

    async def CommitWeights(self, request, context):
        if request.policy_version == 2:
            self.silence = asyncio.create_task(self._fall_silent())
            await asyncio.sleep(60)
        return await super().CommitWeights(request, context)

    async def _fall_silent(self):
        await self.served.kill()
        await asyncio.sleep(1.5)  # connections are refused meanwhile, which the coordinator sees
        silent = await asyncio.start_server(lambda *_: None, "127.0.0.1", self.served.address.rpartition(":")[2])
        await self.is_back.wait()
        silent.close()


async def test_a_version_that_one_replica_has_committed_is_out_though_another_dies_before_it_does(buffer, run_id, tmp_path):
    trainer, dying, living = FakeTrainer(), DiesInCommit(), FakeRollout()
    run = config(runtime={"num_episode": 6})
    async with place(buffer.address, tmp_path, trainer=trainer, rollouts=(dying, living), run=run) as there:
        dying.served = there.rollouts[0]
        there.coordinator.start_run(run_id)
        state = (await there.finish())[-1].state
        dying.is_back.set()
        await dying.silence
    assert (state.life, state.policy_version) == (Life.SUCCEEDED, 7), state.error
    assert living.policy_version == 7
    assert [update.policy_version for update in living.updates] == [1, 2, 3, 4, 5, 6, 7]
    trained_once(trainer)


class PausedAtItsSecondUpdate(FakeRollout):
    """An operator pauses it after the coordinator's last look at it, and before the weights."""

    async def UpdateWeights(self, request, context):
        if len(self.updates) == 1:
            await self.Pause(control_pb2.PauseRequest(timeout_s=1), context)
        return await super().UpdateWeights(request, context)


async def test_a_replica_that_is_paused_just_before_an_update_is_left_out_of_it(buffer, run_id, tmp_path):
    paused, other = PausedAtItsSecondUpdate(), FakeRollout()
    async with place(buffer.address, tmp_path, rollouts=(paused, other)) as there:
        there.coordinator.start_run(run_id)
        state = (await there.finish())[-1].state
        seen = there.coordinator.run.driver.fleet.replicas[0]
    assert state.life is Life.SUCCEEDED, state.error
    assert (other.policy_version, paused.policy_version, seen.health) == (4, 1, ReplicaHealth.PAUSED)


class HangsAtItsFirstUpdate(FakeRollout):
    """Its process is back, but does not take the weights that it missed."""

    async def UpdateWeights(self, request, context):
        if not self.updates:
            self.updates.append(request)
            await asyncio.sleep(60)
        return await super().UpdateWeights(request, context)


async def test_a_replica_that_is_caught_up_for_ever_holds_no_step_up_and_gets_the_next_version(buffer, run_id, tmp_path):
    other, reborn = FakeRollout(delay_s=3.0), HangsAtItsFirstUpdate()
    run = config(runtime={"num_episode": 2}, deadlines={"catch_up_s": 0.5})
    async with place(buffer.address, tmp_path, rollouts=(FakeRollout(delay_s=60), other), run=run) as there:
        there.coordinator.start_run(run_id)
        await until(lambda: other.requests)
        await there.rollouts[0].kill()
        async with again(there.rollouts[0], reborn):
            state = (await there.finish(40))[-1].state
    assert (state.life, state.policy_version) == (Life.SUCCEEDED, 3), state.error
    assert [update.policy_version for update in reborn.updates] == [1, 2, 3]
    assert reborn.policy_version == 3


class CannotTakeWithOthers(FakeRollout):
    """Something breaks in it as it takes version 2, in the transfer or in the commit, the first time."""

    def __init__(self, breaks_in):
        super().__init__()
        self.breaks_in = breaks_in

    def break_once(self, call, version):
        if call == self.breaks_in and version == 2:
            self.breaks_in = ""
            raise ServiceFaultError("no room for the weights")

    async def UpdateWeights(self, request, context):
        answer = await super().UpdateWeights(request, context)
        self.break_once("transfer", request.policy_version)
        return answer

    async def CommitWeights(self, request, context):
        self.break_once("commit", request.policy_version)
        return await super().CommitWeights(request, context)


@pytest.mark.parametrize("phase", ["transfer", "commit"])
async def test_a_replica_in_which_an_update_breaks_is_left_out_with_its_reason_and_caught_up_alone(
    phase, buffer, run_id, tmp_path, caplog
):
    broken, other, seen = CannotTakeWithOthers(phase), FakeRollout(delay_s=1.0), []
    run = config(runtime={"num_episode": 5})
    async with place(buffer.address, tmp_path, rollouts=(broken, other), run=run) as there:
        there.coordinator.start_run(run_id)
        await until(lambda: other.policy_version == 2)
        replica = there.coordinator.run.driver.fleet.replicas[0]
        await until(lambda: replica.fault)  # the other one's commit may be seen before this one's answer
        seen.append(replica.fault)
        state = (await there.finish(40))[-1].state
    assert (state.life, state.policy_version, other.policy_version) == (Life.SUCCEEDED, 6, 6), state.error
    assert "no room for the weights" in seen[0]
    assert (replica.health, replica.fault, broken.policy_version) == (ReplicaHealth.HEALTHY, "", 6)


class AlwaysBreaks(FakeRollout):
    async def UpdateWeights(self, request, context):
        raise ServiceFaultError("no room for the weights")


async def test_if_an_update_breaks_in_all_replicas_the_run_fails_with_the_cause(buffer, run_id, tmp_path):
    async with place(buffer.address, tmp_path, rollouts=(AlwaysBreaks(), AlwaysBreaks())) as there:
        state = await there.run(run_id)
    assert state.life is Life.FAILED
    assert "no room for the weights" in state.error
