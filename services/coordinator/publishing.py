"""Weights to the replicas: each new version to all that can be reached, and the present one to a replica that comes back.

new version:   replicas that take weights --publish--> all serve it
                    ^                          | one died, was paused, hangs, has a fault, or another model
                    +--------------------------+ the group is opened again without it
one is STALE:  a group of its own, the present version again, if the trainer still holds those very weights; it gives way
               to the trainer's next work
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress

from baton.config.services import DeadlinesConfig
from baton.errors import BatonError, DigestMismatchError, ServiceFaultError, WrongModelError
from baton.publication import Publication
from services.coordinator.connections import Connections, blame
from services.coordinator.fleet import Fleet
from services.coordinator.position import Position
from services.coordinator.replicas import Replica, ReplicaHealth
from services.coordinator.state import RunState
from services.coordinator.turns import Turns

log = logging.getLogger(__name__)

TRIES = 5
"""How often one version may lose a replica on its way."""

AGAIN_S = 10.0
"""Between two tries to catch a replica up."""

LOOK_S = 0.2
"""Between two looks at replicas that an update broke off."""

LEAVE_S = 10.0
"""How long an engine may take to come out of an update that broke off, before it counts as one that hangs."""


class Publishing:
    """The versions of a run, and who serves them."""

    def __init__(self, services: Connections, fleet: Fleet, state: RunState, deadlines: DeadlinesConfig) -> None:
        self.trainer = Turns(deadlines.catch_up_s)
        """Held while the trainer is at work: its weights are one version's only in between."""
        self._services = services
        self._fleet = fleet
        self._state = state
        self._deadlines = deadlines
        self.published_step = -1
        """Optimizer step whose weights the present version is."""

    async def next_version(self, served: Sequence[int] = ()) -> Publication:
        """Makes the trainer's weights the next version on every replica that can be reached; waits for one, if none can.
        Those of another run may have been `served` when this one began: none is taken back, so its first one follows them.

        A replica that dies, hangs or is paused meanwhile is left out, and caught up when it is back; one of another model is
        left out for good. Raises what else goes wrong.
        """
        async with self.trainer:
            return await self._publish(max([self._state.policy_version, *served]) + 1)

    async def restore(self, position: Position, served: Sequence[int]) -> None:
        """After the trainer has loaded the checkpoint of that position: its version again, of the same digest, to all
        replicas. They serve the versions `served`, which none takes back: after a higher one these weights get the next
        number. Weights that no version was made of, since `models.policy.sync_frequency` left that out, become the next one.
        """
        async with self.trainer:
            version = max([position.policy_version, *served])
            version += version > position.policy_version
            if position.published_step == position.global_step:
                await self._publish(version, position.weights_digest)
                return
            log.warning(
                "the weights of version %d are no longer there, only those of optimizer step %d; these become version %d, "
                "earlier than models.policy.sync_frequency says", position.policy_version, position.global_step, version + 1,
            )  # fmt: skip
            await self._publish(version + 1)

    async def catch_up(self, replica: Replica) -> None:
        """Brings a STALE replica to the present version, if the trainer still holds that; else it waits for the next one.
        Gives way to the trainer's next work once that has waited for `deadlines.catch_up_s`, and tries again later.

        If no other replica serves either, the next version comes at once: the present one is lost.
        """
        try:
            async with self.trainer.giving_way():
                if await self._sent_again(replica):
                    return
            if self._fleet.healthy():
                version = self._state.policy_version
                replica.reason = f"waits for version {version + 1}: the trainer has left version {version} behind"
                return
            async with self.trainer:  # cut short, it might be served without being known here
                if _waits(replica) and self._has_moved_on and not self._fleet.healthy():
                    await self._publish(self._state.policy_version + 1)
                return
        except (BatonError, TimeoutError) as error:
            waited_s = self._deadlines.catch_up_s
            why = str(error) or f"it gave way to the trainer's next work, which had waited for {waited_s:g} s"
            version = self._state.policy_version
            log.warning("rollout at %s could not be brought to version %d: %s", replica.address, version, why)
            replica.reason = why
        await asyncio.sleep(AGAIN_S)

    async def _sent_again(self, replica: Replica) -> bool:
        """Whether nothing is left to be done for it; False if the trainer does not hold the present version any more."""
        if not _waits(replica):
            return True
        if self._has_moved_on:
            return False
        await self._send(self._state.policy_version, [replica], self._state.weights_digest)
        replica.serves(self._state.policy_version)
        return True

    @property
    def _has_moved_on(self) -> bool:
        return self.published_step != self._state.global_step

    async def _publish(self, version: int, digest: str | None = None) -> Publication:
        for left in reversed(range(TRIES)):
            members = await self._fleet.reachable()
            deaths = [member.deaths for member in members]
            try:
                publication = await self._send(version, members, digest)
                break
            except DigestMismatchError:
                raise
            except BatonError as error:
                await self._settle(members)
                lost = [
                    member
                    for member, before in zip(members, deaths, strict=True)
                    if member.deaths > before or not member.takes_weights or member.fault
                ]
                if not left or not lost or all(member.fault for member in members):
                    raise
                log.warning("publishing version %d broke off, and begins again without whom it lost: %s", version, error)
        self._state.published(version, publication.weights_digest)
        self.published_step = self._state.global_step
        self._fleet.version = version
        for member in members:
            if member.address in publication.committed:
                member.serves(version)
            else:
                member.broke(member.fault or f"did not answer when version {version} was committed")
        return publication

    async def _settle(self, members: Sequence[Replica]) -> None:
        """Looks at the members of an update that broke off, until the engine of each is out of it, or LEAVE_S."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                while True:
                    await asyncio.gather(*(self._fleet.look(member) for member in members))
                    if not any(member.hangs for member in members):
                        return
                    await asyncio.sleep(LOOK_S)

    async def _send(self, version: int, members: Sequence[Replica], digest: str | None = None) -> Publication:
        """One transaction. Given up when a member dies, unless all weights have arrived: the others commit them then."""
        clients = {self._fleet.client(member): member for member in members}
        names = ", ".join(member.address for member in members)
        called = f"publishing weights version {version} from {self._services.trainer_name} to rollout at {names}"
        with blame(called, None), _updating(members):
            try:
                return await self._services.publisher.publish(
                    version, to=list(clients), digest=digest, begin_s=self._deadlines.publish_begin_s,
                    timeout_s=self._deadlines.publish_s, commit_s=self._deadlines.publish_commit_s,
                    guard=lambda client: self._watched(clients[client]),
                )  # fmt: skip
            except WrongModelError as error:
                for member in members:
                    if why := error.replicas.get(member.address):
                        member.is_unfit(why)
                raise

    @asynccontextmanager
    async def _watched(self, member: Replica) -> AsyncIterator[None]:
        """Around each call to it: who has died is not waited for, and whose own fault it was is remembered."""
        try:
            async with self._fleet.while_alive(member):
                yield
        except ServiceFaultError as error:
            member.fault = str(error)
            raise


@contextmanager
def _updating(members: Sequence[Replica]) -> Iterator[None]:
    for member in members:
        member.updating = True
    try:
        yield
    finally:
        for member in members:
            member.updating = False


def _waits(replica: Replica) -> bool:
    """For weights that could reach it now."""
    return replica.health is ReplicaHealth.STALE and replica.takes_weights
