"""Publishing weights: one transaction over the trainer and rollout replicas.

    open group -> UpdateWeights on the replicas, PublishWeights on the trainer -> compare digests -> CommitWeights
    |--- begin ---------->|---- transfer --------------------------------------------------->|---- commit ---->|

Each phase has a deadline of its own; an error that reaches one names the phase. The broadcast itself runs between the
services; this module only says when, and checks what each side received.

Of a run that sends adapters (`lora.sync`), replicas that do not hold the weights below the adapter get those first, by the
same steps but without a commit.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from baton.api.common.v1 import weights_pb2
from baton.api.rollout.v1 import rollout_pb2
from baton.api.trainer.v1 import trainer_pb2
from baton.clients.rollout import RolloutClient
from baton.clients.rollout_control import InFlight
from baton.clients.trainer import TrainerClient
from baton.errors import (
    DeadlineError,
    DigestMismatchError,
    NotFoundError,
    NotReadyError,
    ServiceFaultError,
    ServiceUnavailableError,
)
from baton.publication import Publication, summary

Guard = Callable[[RolloutClient], AbstractAsyncContextManager[None]]
"""A context for each call to a replica, which may end that call by an error of its own."""


CAUSE_S = 1.5
"""How long members are heard that are part of an update which ended for one of them because another is missing."""

_LEFT_OUT = ServiceUnavailableError, DeadlineError, NotReadyError, ServiceFaultError
"""What of one replica's commit does not concern the others."""

_BASE, _ADAPTER = weights_pb2.WEIGHT_CONTENT_BASE, weights_pb2.WEIGHT_CONTENT_ADAPTER


class _GroupUnknownError(NotFoundError):
    """A replica's answer. The trainer's own, that it has no such group, means that its weights may be gone too."""


@dataclass(frozen=True, slots=True)
class _Terms:
    """How one version is to be published; see `WeightPublisher.publish`."""

    version: int
    digest: str | None
    in_flight: InFlight | None
    verify: bool
    guard: Guard
    begin_s: float
    timeout_s: float


def _no_guard(replica: RolloutClient) -> AbstractAsyncContextManager[None]:
    return nullcontext()


class WeightPublisher:
    """Keeps the broadcast group of one trainer and its replicas, and publishes versions to it."""

    def __init__(self, trainer: TrainerClient, replicas: Sequence[RolloutClient]) -> None:
        self._trainer = trainer
        self._replicas = list(replicas)
        self._group: weights_pb2.WeightGroup | None = None
        self._members: list[RolloutClient] = []
        self._first_ranks: list[int] = []
        self._known = False
        """Whether all members have had an update by the group: its id says all to them, then."""
        self._verified = False

    async def publish(
        self, policy_version: int, *, to: Sequence[RolloutClient] | None = None, digest: str | None = None,
        in_flight: InFlight | None = None, begin_s: float = 60.0, timeout_s: float = 300.0, commit_s: float = 60.0,
        verify: bool = False, guard: Guard = _no_guard,
    ) -> Publication:  # fmt: skip
        """Makes the replicas `to` (None: all) serve the trainer's present weights as `policy_version`.

        Another `to` than the last time, a replica that was started again, or an error, has the group opened anew. With
        `digest` the version was published before, as the weights of that digest: others are not committed. Raises
        DigestMismatchError, naming the replica, if what arrived is not what was sent; WrongModelError, before anything is
        paused, if one has another model or tokenizer than the trainer; a replica's errors as they are; none if one of
        several vanishes at the commit, or cannot load. `in_flight` says what becomes of responses under way (None: they are
        kept if an adapter comes, else aborted); those that are kept go on with the new weights, and their samples' spans
        tell which tokens are whose, but with the adapter that they began with, if they have one. With `verify`, and with
        the first version of every group but an adapter's, all is sent twice, and what is in the engines is compared bit for
        bit. `guard` is entered around each call to a replica: who knows that it is dead need not let the call wait for it.

        `begin_s` bounds the opening of a group, and on each replica what comes before the transfer; `timeout_s` the
        transfer; `commit_s` the commit. Whatever goes wrong, a replica serves what it served, or nothing, with its reason.
        """
        members = list(self._replicas if to is None else to)
        terms = _Terms(policy_version, digest, in_flight, verify, guard, begin_s, timeout_s)
        started, base_bytes = time.perf_counter(), 0
        try:
            if not self._is_open_for(members):
                await self._open_for(members, terms)
            if self._group.content == _BASE:
                base_bytes = (await self._transfer(terms))[0].bytes
                self._group = None
                await self._open_for(members, terms)
                if self._group.content == _BASE:
                    raise NotReadyError("the weights below the adapter were sent, but not all replicas have kept them")
            sent, received = await self._transferred(members, terms)
            commits = await self._commit(policy_version, sent.weights_digest, guard, commit_s)
            self._verified = True
        except BaseException:
            self._group = None
            raise
        return summary(policy_version, sent, received, commits, time.perf_counter() - started, base_bytes)

    def _is_open_for(self, members: list[RolloutClient]) -> bool:
        """As far as is known here. That of an adapter is looked at every time: replicas may have lost what is below it."""
        return self._group is not None and self._known and self._members == members and self._group.content != _ADAPTER

    async def _transferred(self, members: list[RolloutClient], terms: _Terms) -> tuple[Any, Any]:
        """As `_transfer`; opens the group anew if a member does not know it any more, because it was started again."""
        try:
            return await self._transfer(terms)
        except _GroupUnknownError:
            self._group = None
        await self._open_for(members, terms)
        return await self._transfer(terms)

    async def _transfer(
        self, terms: _Terms
    ) -> tuple[trainer_pb2.PublishWeightsResponse, list[rollout_pb2.UpdateWeightsResponse]]:  # fmt: skip
        """Sends what the open group is for, and compares what its members received."""
        group, members = self._group, self._members
        is_base, is_adapter = group.content == _BASE, group.content == _ADAPTER
        named = weights_pb2.WeightGroup(group_id=group.group_id, content=group.content) if self._known else group
        in_flight = terms.in_flight or ("keep" if is_adapter else "abort")
        verify, self._verified = terms.verify or not (self._verified or is_adapter), False
        receptions = [
            _guarded(
                terms.guard(replica),
                _received(
                    replica, terms.version, named, first_rank=rank, begin_s=terms.begin_s, timeout_s=terms.timeout_s,
                    in_flight=in_flight, verify=verify,
                ),
            )
            for replica, rank in zip(members, self._first_ranks, strict=True)
        ]
        sending = self._sent(group.group_id, terms.version, terms.timeout_s, verify=verify)
        sent, *received = await _all_or_cause(sending, *receptions)
        if not is_base and terms.digest not in (None, sent.weights_digest):
            raise DigestMismatchError(
                f"version {terms.version} was published as weights {terms.digest}, but the trainer sent "
                f"{sent.weights_digest} this time; it has moved on, or was restarted; nothing was committed"
            )
        for replica, arrived in zip(members, received, strict=True):
            if arrived.weights_digest != sent.weights_digest:
                raise DigestMismatchError(
                    f"version {terms.version}: the trainer sent weights {sent.weights_digest}, but rollout "
                    f"{replica.address} holds {arrived.weights_digest}; the rollout side is behind and serves nothing "
                    "until a whole update reaches it"
                )
        self._known = True
        return sent, received

    async def _sent(self, group_id: str, version: int, timeout_s: float, *, verify: bool) -> Any:
        with _phase("transfer", "publish_s"):
            return await self._trainer.publish_weights(group_id, version, timeout_s=timeout_s, verify=verify)

    async def _commit(
        self, version: int, digest: str, guard: Guard, timeout_s: float
    ) -> dict[str, rollout_pb2.CommitWeightsResponse]:  # fmt: skip
        """Answers by address. A version that one replica serves is out: it is not taken back because another vanished,
        cannot load it, or is a new process that has nothing to commit."""
        answers = await asyncio.gather(
            *(
                _guarded(guard(member), member.commit_weights(version, digest, timeout_s=timeout_s))
                for member in self._members
            ),
            return_exceptions=True,
        )
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        fatal = [error for error in errors if not isinstance(error, _LEFT_OUT)]
        if fatal or len(errors) == len(answers):
            raise (fatal or errors)[0]
        if errors:
            self._group = None
        commits = zip(self._members, answers, strict=True)
        return {member.address: answer for member, answer in commits if not isinstance(answer, BaseException)}

    async def _open_for(self, members: list[RolloutClient], terms: _Terms) -> None:
        """Opens a group, unless the open one is of an adapter and all members hold what is below it."""
        asked = (_guarded(terms.guard(replica), replica.get_status()) for replica in members)
        statuses = await _all_or_first_error(*asked)  # each within its client's limit, which no option moves
        held, is_adapter = {status.base_digest for status in statuses}, self._group and self._group.content == _ADAPTER
        if is_adapter and self._members == members and held == {self._group.base_digest}:
            return
        try:
            async with asyncio.timeout(terms.begin_s):
                with _phase("begin", "publish_begin_s"):
                    await self._opened(list(zip(members, statuses, strict=True)), terms.begin_s)
        except TimeoutError as error:
            if isinstance(error, DeadlineError):
                raise
            raise DeadlineError(
                f"begin: the trainer did not open a weight group within {terms.begin_s:g} s; {_fix('publish_begin_s')}"
            ) from error

    async def _opened(self, everyone: list[tuple[RolloutClient, rollout_pb2.GetStatusResponse]], begin_s: float) -> None:
        await self._open(everyone, begin_s)
        base = self._group.base_digest
        if self._group.content == _BASE and base:  # those that hold it need not stand still for it
            lacking = [(member, status) for member, status in everyone if status.base_digest != base]
            if len(lacking) < len(everyone):
                await self._open(lacking, begin_s)

    async def _open(self, members: list[tuple[RolloutClient, rollout_pb2.GetStatusResponse]], begin_s: float) -> None:
        first_ranks = list(accumulate((status.workers for _, status in members), initial=1))  # rank 0 is the sender
        receivers = [
            trainer_pb2.WeightReceiver(
                address=replica.address, devices=status.devices, model_facts=status.model_facts,
                base_digest=status.base_digest,
            )
            for replica, status in members
        ]  # fmt: skip
        self._group = await self._trainer.open_weight_group(first_ranks.pop() - 1, receivers, timeout_s=begin_s)
        self._members = [replica for replica, _ in members]
        self._first_ranks, self._known, self._verified = first_ranks, False, False


def _fix(option: str) -> str:
    return f"raise deadlines.{option} if it is only slow"


@contextmanager
def _phase(name: str, option: str) -> Iterator[None]:
    """Has a deadline that was reached told by the phase's name, and with the option that moves it."""
    try:
        yield
    except DeadlineError as error:
        raise DeadlineError(f"{name}: {error}; {_fix(option)}") from error


async def _received(replica: RolloutClient, *what: Any, **how: Any) -> rollout_pb2.UpdateWeightsResponse:
    try:
        return await replica.update_weights(*what, **how)
    except NotFoundError as error:
        raise _GroupUnknownError(str(error)) from error


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


async def _all_or_cause(*calls: Coroutine[Any, Any, Any]) -> list[Any]:
    """As `_all_or_first_error`, of the members of one update: an error of its own is raised rather than that another is
    missing, which the member with the error is about to explain."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        _, going_on = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        with suppress(TimeoutError):
            async with asyncio.timeout(CAUSE_S):
                while going_on and not _own_error(tasks):
                    _, going_on = await asyncio.wait(going_on, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    if error := _own_error(tasks) or _own_error(tasks, missing=True):
        raise error
    return [task.result() for task in tasks]


def _own_error(tasks: Iterable[asyncio.Future[Any]], *, missing: bool = False) -> BaseException | None:
    """The first one's; with `missing` also one that only tells of others."""
    errors = [error for task in tasks if task.done() and not task.cancelled() and (error := task.exception())]
    return next((error for error in errors if missing or not isinstance(error, DeadlineError)), None)
