"""The rollout replicas as they are now: looked at every second, waited for, and left by calls that wait for a dead one."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from baton.api.rollout.v1 import rollout_pb2
from baton.clients.rollout import RolloutClient
from baton.errors import BatonError, ServiceUnavailableError, WrongModelError
from services.coordinator import liveness
from services.coordinator.replicas import Replica, ReplicaHealth, least_outstanding

log = logging.getLogger(__name__)

CatchUp = Callable[[Replica], Coroutine[Any, Any, None]]
"""Brings a STALE replica to the present version, or gives up for now."""

INTERVAL_S = 1.0
"""Between two looks at a replica."""

ANSWER_S = 3.0
"""How long a replica may take to say what it serves; it holds no model itself, so it is never long at work."""


class Fleet:
    """All replicas of a run, and the policy version that they are to serve."""

    def __init__(self, clients: Sequence[RolloutClient], *, return_s: float) -> None:
        """`return_s`: how long to wait for a replica while none serves."""
        self.replicas = [Replica(client.address, self._changed) for client in clients]
        self.version = 0
        """What a replica must serve to be HEALTHY."""
        self._clients = {client.address: client for client in clients}
        self._return_s = return_s
        self._news = asyncio.Event()
        self._waits: dict[str, set[asyncio.Timeout]] = {client.address: set() for client in clients}

    def client(self, replica: Replica) -> RolloutClient:
        """How to call it."""
        return self._clients[replica.address]

    def healthy(self) -> list[Replica]:
        """Those that serve."""
        return [replica for replica in self.replicas if replica.health is ReplicaHealth.HEALTHY]

    async def take(self, prompts: int, home: str | None = None) -> Replica:
        """The replica for a request, with its `prompts` counted as outstanding: `home` while it is HEALTHY, else the one
        with the fewest. Waits while none is HEALTHY; raises ServiceUnavailableError, with what became of each, in the end.
        """
        await self._until(lambda: bool(self.healthy()))
        replica = least_outstanding(self.replicas, home)
        assert replica is not None
        replica.outstanding += prompts
        return replica

    async def reachable(self) -> list[Replica]:
        """Those that can take weights; with a fault only if there are no others. Waits for one, and raises, as `take` does;
        raises WrongModelError if none is of the trainer's model."""
        await asyncio.gather(*(self.look(one) for one in self.replicas if one.health is ReplicaHealth.SUSPECT))

        def found() -> list[Replica]:
            takers = [replica for replica in self.replicas if replica.takes_weights]
            return [replica for replica in takers if not replica.fault] or takers

        await self._until(lambda: bool(found()))
        return found()

    async def look(self, replica: Replica) -> None:
        """Connects to it and asks what it serves; of no account if something else became of it meanwhile."""
        before = replica.health
        try:
            await liveness.look(replica.address)
        except TimeoutError as error:
            tell = partial(replica.unreached, liveness.why(error))
        except OSError as error:
            tell = partial(replica.refused, liveness.why(error))
        else:
            tell = await self._ask(replica)
        if replica.health is before:
            tell()

    async def _ask(self, replica: Replica) -> Callable[[], None]:
        try:
            async with asyncio.timeout(ANSWER_S):
                status = await self.client(replica).get_status()
        except (BatonError, TimeoutError):
            return partial(replica.silent, f"accepts connections, but does not answer within {ANSWER_S:g} s")
        return partial(self._answered, replica, status)

    def _answered(self, replica: Replica, status: rollout_pb2.GetStatusResponse) -> None:
        before = replica.takes_weights
        replica.is_process(status.instance_id, hangs=status.ending_update)
        if status.state in (rollout_pb2.REPLICA_STATE_PAUSED, rollout_pb2.REPLICA_STATE_ASLEEP):
            replica.paused(status.state_reason)
        else:
            serving = status.state == rollout_pb2.REPLICA_STATE_HEALTHY
            replica.answered(status.policy_version, serving, self.version, status.state_reason)
        if replica.takes_weights != before:
            self._tell()

    async def watch(self, catch_up: CatchUp) -> None:
        """Looks at all replicas, for ever, and has those caught up that are STALE."""
        async with asyncio.TaskGroup() as tasks:
            for replica in self.replicas:
                tasks.create_task(self._watch_one(replica, catch_up, tasks))

    async def _watch_one(self, replica: Replica, catch_up: CatchUp, tasks: asyncio.TaskGroup) -> None:
        """Goes on looking while it is caught up: who catches it up may wait for what only a look can tell, as its death."""
        catching: asyncio.Task[None] | None = None
        while True:
            await self.look(replica)
            waits = replica.health is ReplicaHealth.STALE and replica.takes_weights and not replica.updating
            if waits and (catching is None or catching.done()):
                catching = tasks.create_task(catch_up(replica))
            await asyncio.sleep(INTERVAL_S)

    @asynccontextmanager
    async def while_alive(self, replica: Replica) -> AsyncIterator[None]:
        """Around calls to it, which may wait for a process that is gone. Raises ServiceUnavailableError when it dies, and
        if it is dead."""
        waits, limit = self._waits[replica.address], asyncio.timeout(None)
        if replica.health in (ReplicaHealth.DEAD, ReplicaHealth.RESTARTING):
            raise _died(replica)
        try:
            async with limit:
                waits.add(limit)
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise _died(replica) from error
        finally:
            waits.discard(limit)

    def _changed(self, replica: Replica, before: ReplicaHealth) -> None:
        name = f"rollout at {replica.address}"
        match replica.health:
            case ReplicaHealth.DEAD:
                log.warning("%s died: %s", name, replica.reason)
                if replica.outstanding:
                    log.warning("%s: its %d unanswered groups go elsewhere", name, replica.outstanding)
                for limit in self._waits[replica.address]:
                    limit.reschedule(asyncio.get_running_loop().time())
            case ReplicaHealth.PAUSED:
                log.info("%s gets no requests and no weights: %s", name, replica.reason)
            case ReplicaHealth.STALE:
                back = "is back" if before in (ReplicaHealth.DEAD, ReplicaHealth.RESTARTING) else "is still there"
                log.info("%s %s with version %d, stale: %s", name, back, replica.version, replica.reason)
            case ReplicaHealth.HEALTHY if before is not ReplicaHealth.SUSPECT:
                log.info("%s serves version %d", name, replica.version)
        self._tell()

    def _tell(self) -> None:
        """Has those who wait for a replica look again."""
        self._news.set()
        self._news = asyncio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        """A replica that somebody has paused lives, and is waited for as long as it says so."""
        try:
            async with asyncio.timeout(self._return_s) as limit:
                while not condition():
                    if all(replica.unfit for replica in self.replicas):
                        raise WrongModelError("; ".join(replica.unfit for replica in self.replicas))
                    if any(replica.health is ReplicaHealth.PAUSED for replica in self.replicas):
                        limit.reschedule(None)
                    elif limit.when() is None:
                        limit.reschedule(asyncio.get_running_loop().time() + self._return_s)
                    await self._news.wait()
        except TimeoutError as error:
            told = "; ".join(f"rollout at {one.address} is {one.health}: {one.reason}" for one in self.replicas)
            raise ServiceUnavailableError(
                f"no rollout replica serves, and none came back within {self._return_s:g} s ({told}); see its log, and "
                "resume the run, or raise deadlines.restart_s if it is only slow to start"
            ) from error


def _died(replica: Replica) -> ServiceUnavailableError:
    return ServiceUnavailableError(f"rollout at {replica.address} died: {replica.reason}")
