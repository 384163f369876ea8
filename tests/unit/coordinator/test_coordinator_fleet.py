"""Looking at replicas: what is seen late counts for nothing, and waiting ends in time."""

import asyncio
import socket
import time

import pytest
from harness import until

from baton.api.rollout.v1 import rollout_pb2
from baton.clients import RolloutClient
from baton.errors import ServiceUnavailableError
from baton.testing import FakeRollout, serve
from services.coordinator import liveness
from services.coordinator.fleet import Fleet
from services.coordinator.replicas import ReplicaHealth


class SlowToSay(FakeRollout):
    async def GetStatus(self, request, context):
        await asyncio.sleep(1.0)
        return await super().GetStatus(request, context)


async def test_an_answer_that_never_came_from_a_process_that_has_died_since_is_of_no_account():
    async with serve(SlowToSay()) as served:
        fleet = Fleet([RolloutClient(served.address)], return_s=1.0)
        (replica,) = fleet.replicas
        early = asyncio.create_task(fleet.look(replica))
        await asyncio.sleep(0.2)
        await served.kill()
        replica.broke("connection reset")
        await fleet.look(replica)
        assert replica.health is ReplicaHealth.DEAD
        await early
        assert (replica.health, replica.deaths) == (ReplicaHealth.DEAD, 1)


async def test_a_call_that_waits_for_a_dead_replica_is_given_up():
    fleet = Fleet([RolloutClient("127.0.0.1:1")], return_s=1.0)
    (replica,) = fleet.replicas
    begun = time.monotonic()
    with pytest.raises(ServiceUnavailableError, match=r"rollout at 127\.0\.0\.1:1 died: connection refused"):
        async with fleet.while_alive(replica):
            replica.broke("a call broke off")
            await fleet.look(replica)
            await asyncio.sleep(60)
    assert time.monotonic() - begun < 30


async def test_a_call_to_a_dead_replica_is_not_begun():
    fleet = Fleet([RolloutClient("127.0.0.1:1")], return_s=1.0)
    (replica,) = fleet.replicas
    replica.broke("a call broke off")
    await fleet.look(replica)
    with pytest.raises(ServiceUnavailableError, match=r"rollout at 127\.0\.0\.1:1 died: connection refused"):
        async with fleet.while_alive(replica):
            raise AssertionError("begun")


async def test_without_a_replica_that_serves_the_wait_ends_with_what_became_of_each():
    fleet = Fleet([RolloutClient("127.0.0.1:1"), RolloutClient("127.0.0.1:2")], return_s=0.2)
    for replica in fleet.replicas:
        await fleet.look(replica)
    told = "rollout at 127.0.0.1:1 is suspect: connection refused; rollout at 127.0.0.1:2 is suspect: connection refused"
    for wait in (fleet.take(1), fleet.reachable()):
        with pytest.raises(ServiceUnavailableError, match=told):
            await wait


async def test_a_full_backlog_of_a_process_that_starts_is_not_another_death(monkeypatch):
    monkeypatch.setattr(liveness, "CONNECT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as starting:
        host, port = starting.getsockname()
        fleet = Fleet([RolloutClient(f"{host}:{port}")], return_s=1.0)
        (replica,) = fleet.replicas
        replica.broke("a call broke off")
        for seen in (replica.refused, replica.silent):
            seen("it is started again")
        with socket.create_connection((host, port)):  # nobody accepts it, and there is room for no other
            await fleet.look(replica)
        assert (replica.health, replica.deaths) == (ReplicaHealth.RESTARTING, 1)
    await fleet.look(replica)
    assert (replica.health, replica.deaths) == (ReplicaHealth.DEAD, 2)


class Hanging(FakeRollout):
    """Stale, and not out of its last update while `hangs`."""

    hangs = True

    async def GetStatus(self, request, context):
        status = await super().GetStatus(request, context)
        status.state, status.ending_update = rollout_pb2.REPLICA_STATE_STALE, self.hangs
        return status


async def test_an_engine_that_comes_out_of_its_update_ends_the_wait_for_a_replica_that_takes_weights():
    hanging = Hanging()
    async with serve(hanging) as served:
        fleet = Fleet([RolloutClient(served.address)], return_s=60.0)
        (replica,) = fleet.replicas
        await fleet.look(replica)
        waiting = asyncio.create_task(fleet.reachable())
        await asyncio.sleep(0.1)
        await fleet.look(replica)
        assert not waiting.done()
        hanging.hangs = False
        await fleet.look(replica)
        async with asyncio.timeout(20):
            assert await waiting == [replica]


async def test_a_stale_replica_is_looked_at_while_it_is_caught_up_once_and_what_that_raises_ends_the_watch():
    begun, go, ended = [], asyncio.Event(), []

    async def catch_up(replica):
        begun.append(replica)
        try:
            await go.wait()
            raise ValueError("a defect")
        finally:
            ended.append(replica)

    async with serve(FakeRollout()) as served:
        fleet = Fleet([RolloutClient(served.address)], return_s=1.0)
        fleet.version = 1
        (replica,) = fleet.replicas
        watching = asyncio.create_task(fleet.watch(catch_up))
        await until(lambda: begun)
        await served.kill()
        await until(lambda: replica.health is ReplicaHealth.DEAD)
        async with serve(FakeRollout(), port=int(served.address.rpartition(":")[2])):
            await until(lambda: replica.health is ReplicaHealth.STALE)
            await asyncio.sleep(1.5)
            assert (begun, ended) == ([replica], [])
            go.set()
            with pytest.raises(ExceptionGroup) as raised:
                await watching
            assert [str(error) for error in raised.value.exceptions] == ["a defect"]
            go.clear()
            watching = asyncio.create_task(fleet.watch(catch_up))
            await until(lambda: len(begun) == 2)
            watching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await watching
    assert ended == [replica, replica]
