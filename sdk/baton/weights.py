"""Publishing weights: one transaction over the trainer and rollout replicas.

    open group -> UpdateWeights on the replicas, PublishWeights on the trainer -> compare digests -> CommitWeights

The broadcast itself runs between the services; this module only says when, and checks what each side received.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from baton.api.common.v1 import weights_pb2
from baton.api.rollout.v1 import rollout_pb2
from baton.clients.rollout import RolloutClient
from baton.clients.rollout_control import InFlight
from baton.clients.trainer import TrainerClient
from baton.errors import DeadlineError, DigestMismatchError, NotReadyError, ServiceUnavailableError

Guard = Callable[[RolloutClient], AbstractAsyncContextManager[None]]
"""A context for each call to a replica, which may end that call by an error of its own."""


def _no_guard(replica: RolloutClient) -> AbstractAsyncContextManager[None]:
    return nullcontext()


@dataclass(frozen=True, slots=True)
class Publication:
    """One committed weight update: seconds per phase are the slowest participant's."""

    policy_version: int
    weights_digest: str
    bytes: int
    gather_s: float
    wire_s: float
    load_s: float
    digest_s: float
    pause_s: float
    committed: tuple[str, ...]
    """Addresses of the replicas that serve it; one that vanished after it had received all is left out."""


class WeightPublisher:
    """Keeps the broadcast group of one trainer and its replicas, and publishes versions to it."""

    def __init__(self, trainer: TrainerClient, replicas: Sequence[RolloutClient]) -> None:
        self._trainer = trainer
        self._replicas = list(replicas)
        self._group: weights_pb2.WeightGroup | None = None
        self._members: list[RolloutClient] = []
        self._instances: list[str] = []
        self._first_ranks: list[int] = []

    async def publish(
        self, policy_version: int, *, to: Sequence[RolloutClient] | None = None, digest: str | None = None,
        in_flight: InFlight = "abort", timeout_s: float = 300.0, guard: Guard = _no_guard,
    ) -> Publication:  # fmt: skip
        """Makes the replicas `to` (None: all) serve the trainer's present weights as `policy_version`.

        Another `to` than the last time, a replica that was started again, or an error, has the group opened anew. With
        `digest` the version was published before, as the weights of that digest: others are not committed. Raises
        DigestMismatchError, naming the replica, if what arrived is not what was sent; a replica's errors as they are; none
        if one of several vanishes at the commit. `in_flight` says what becomes of responses under way; those that are kept
        go on with the new weights, and their samples' spans tell which tokens are whose. `guard` is entered around each
        call to a replica: who knows that it is dead need not let the call wait for it.
        """
        members = list(self._replicas if to is None else to)
        try:
            group = await self._group_of(members, guard)
            receptions = [
                _guarded(
                    guard(replica),
                    replica.update_weights(policy_version, group, first_rank=rank, timeout_s=timeout_s, in_flight=in_flight),
                )
                for replica, rank in zip(members, self._first_ranks, strict=True)
            ]
            sending = self._trainer.publish_weights(group.group_id, policy_version, timeout_s=timeout_s)
            sent, *received = await _all_or_first_error(sending, *receptions)
            if digest not in (None, sent.weights_digest):
                raise DigestMismatchError(
                    f"version {policy_version} was published as weights {digest}, but the trainer sent "
                    f"{sent.weights_digest} this time; it has moved on, or was restarted; nothing was committed"
                )
            for replica, arrived in zip(members, received, strict=True):
                if arrived.weights_digest != sent.weights_digest:
                    raise DigestMismatchError(
                        f"version {policy_version}: the trainer sent weights {sent.weights_digest}, but rollout "
                        f"{replica.address} holds {arrived.weights_digest}; the rollout side is behind and serves nothing "
                        "until a whole update reaches it"
                    )
            commits = await self._commit(policy_version, sent.weights_digest, guard)
        except BaseException:
            self._group = None
            raise
        phases = [sent.phases, *(arrived.phases for arrived in received)]
        return Publication(
            policy_version,
            sent.weights_digest,
            sent.bytes,
            gather_s=sent.phases.gather_s,
            wire_s=max(phase.wire_s for phase in phases),
            load_s=max(phase.load_s for phase in phases),
            digest_s=max(phase.digest_s for phase in phases),
            pause_s=max(commit.pause_s for commit in commits.values()),
            committed=tuple(commits),
        )

    async def _commit(self, version: int, digest: str, guard: Guard) -> dict[str, rollout_pb2.CommitWeightsResponse]:
        """Answers by address. A version that one replica serves is out: it is not taken back because another vanished, or
        is a new process that has nothing to commit."""
        answers = await asyncio.gather(
            *(_guarded(guard(member), member.commit_weights(version, digest)) for member in self._members),
            return_exceptions=True,
        )
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        fatal = [error for error in errors if not isinstance(error, ServiceUnavailableError | DeadlineError | NotReadyError)]
        if fatal or len(errors) == len(answers):
            raise (fatal or errors)[0]
        if errors:
            self._group = None
        commits = zip(self._members, answers, strict=True)
        return {member.address: answer for member, answer in commits if not isinstance(answer, BaseException)}

    async def _group_of(self, members: list[RolloutClient], guard: Guard) -> weights_pb2.WeightGroup:
        """The open group if the very same processes are in it, else a new one."""
        statuses = await _all_or_first_error(*(_guarded(guard(replica), replica.get_status()) for replica in members))
        instances = [status.instance_id for status in statuses]
        if self._group is None or instances != self._instances:
            first_ranks = list(accumulate((status.workers for status in statuses), initial=1))  # rank 0 is the sender
            self._group = await self._trainer.open_weight_group(first_ranks.pop() - 1)
            self._members, self._instances, self._first_ranks = members, instances, first_ranks
        return self._group


async def _guarded(guard: AbstractAsyncContextManager[None], call: Coroutine[Any, Any, Any]) -> Any:
    async with guard:
        return await call


async def _all_or_first_error(*calls: Coroutine[Any, Any, Any]) -> list[Any]:
    """Like gather, but the first error cancels the other calls and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(call) for call in calls]
    except ExceptionGroup as errors:  # not except*, out of which Python 3.11.2 raises a group again
        raise errors.exceptions[0] from None
    return [task.result() for task in running]
