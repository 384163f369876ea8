"""A replica's weight updates: what arrives, and when it is served.

    receive: nothing is served while weights arrive         -> commit: they are served
    staged:  the old ones are served while weights arrive   -> commit: a pause to copy them; they are served
    base:    nothing is served while the weights arrive that adapters are for; they become no version
    adapter: the old one is served while another arrives    -> commit: what begins gets the new one; nothing pauses
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from baton.api.common.v1 import weights_pb2
from baton.api.rollout.v1 import control_pb2
from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.api.rollout.v1.control_pb2 import InFlight
from baton.errors import BatonError, DeadlineError, InvalidRequestError, NotFoundError, NotReadyError, ServiceFaultError
from services.common.weight_sync.digest import joined
from services.common.weight_sync.plan import payload_of
from services.rollout.generation import RolloutEngine
from services.rollout.versions import VersionGate

log = logging.getLogger(__name__)

Reports = list[dict[str, Any]]
Answer = TypeVar("Answer")

DRAIN_S = 30.0
"""How long kept responses under an adapter may go on when the one after the next comes, and needs its place."""

_BASE, _ADAPTER = weights_pb2.WEIGHT_CONTENT_BASE, weights_pb2.WEIGHT_CONTENT_ADAPTER
_ABORT, _WAIT, _KEEP = control_pb2.IN_FLIGHT_ABORT, control_pb2.IN_FLIGHT_WAIT, control_pb2.IN_FLIGHT_KEEP

_PHASES = {
    "begin": (
        "the engine did not stand still, or an earlier update, or responses under an older adapter, had not ended,",
        "publish_begin_s",
    ),
    "transfer": ("not all weights arrived", "publish_s"),
    "commit": ("the engine did not go on with the new weights", "publish_commit_s"),
}
"""By phase: what was waited for in vain, and the option that bounds it."""


class WeightUpdates:
    """One engine's."""

    def __init__(
        self, engine: RolloutEngine, gate: VersionGate, clear_the_way: Callable[[InFlight], Awaitable[None]]
    ) -> None:  # fmt: skip
        """`clear_the_way` sees to the responses under way before other weights are loaded."""
        self._engine = engine
        self._gate = gate
        self._clear_the_way = clear_the_way
        self._at_work: asyncio.Task[Any] | None = None  # what the engine was last asked to do, which it ends in any case
        self._awaited = False
        self._group = weights_pb2.WeightGroup()  # of the last transfer, if that succeeded
        self._staged: pb.UpdateWeightsRequest | None = None
        self._adapter: tuple[int, InFlight] | None = None  # that which waits for its commit: its number, and whom it ends
        self._timeout_s = 0.0  # of the last transfer
        self._halted = False
        self.served = {0: (0, "")}
        """Version and digest, by the engine's count of weights."""
        self.base_digest = ""
        """Of the weights that adapters are for; empty: none have come for that, or they are gone."""

    async def receive(self, request: pb.UpdateWeightsRequest) -> pb.UpdateWeightsResponse:
        """Receives a version. If that fails, the replica is STALE, and serves nothing until a whole update is committed;
        while it was staged, or is an adapter, it goes on with what it serves."""
        group = self._group_of(request)
        self._check_content(group)
        answer = await (self._receive_adapter if group.content == _ADAPTER else self._receive_whole)(request, group)
        self._group = group
        return answer

    def _group_of(self, request: pb.UpdateWeightsRequest) -> weights_pb2.WeightGroup:
        """That of the request, or the known one that it names by its id alone. Raises NotFoundError."""
        if request.group.senders:
            return request.group
        if self._group.senders and request.group.group_id == self._group.group_id:
            return self._group
        raise NotFoundError(
            f"weight group {request.group.group_id} is none that this replica is in: it was started again, or its last "
            "update broke off; send all of the group"
        )

    async def _receive_whole(
        self, request: pb.UpdateWeightsRequest, group: weights_pb2.WeightGroup
    ) -> pb.UpdateWeightsResponse:  # fmt: skip
        version, room, is_base = request.policy_version, self._engine.staging_bytes, group.content == _BASE
        staged = bool(room) and not is_base and payload_of(group) <= room
        begun, begin_s = self._begun(request, serving=staged), request.begin_s or request.timeout_s
        self._staged = request if staged else None
        await self._guarded(version, "begin", begin_s, self._beginning(request, staged=staged))
        if not staged:
            self.base_digest = ""
        ready = time.perf_counter()
        arriving = asyncio.create_task(self._ended(self._arriving(request, group, staged=staged)))
        try:
            if not staged:
                await self._guarded(version, "begin", begin_s, self._engine.halted())
            reports = await self._guarded(version, "transfer", request.timeout_s, arriving)
        finally:
            arriving.cancel()  # which does not end what the engine has begun
        _log_arrival(version, reports, begin_s=ready - begun, arrival_s=time.perf_counter() - ready)
        digest = self._common_digest(version, reports)
        if is_base:
            self.base_digest = digest
            self._gate.lay_base(version)
            return _answer(reports, digest)
        self._gate.arrived(version, digest)
        if not staged:
            self.served[self._engine.loads] = version, digest
        return _answer(reports, digest)

    def forget(self) -> None:
        """The weights are gone."""
        self.base_digest, self._adapter = "", None

    def _check_content(self, group: weights_pb2.WeightGroup) -> None:
        if group.content not in (_BASE, _ADAPTER):
            return
        if self._engine.adapters is None:
            raise InvalidRequestError(
                "this replica was started without room for adapters; start it with the run file that turns "
                "models.ppo_policy.lora on (vLLM alone has them), or set models.ppo_policy.lora.sync to merged"
            )
        if group.content == _ADAPTER and (not self.base_digest or group.base_digest != self.base_digest):
            raise NotReadyError(
                f"this adapter is for weights {group.base_digest or '(no digest)'}, and the trainer has sent "
                f"{self.base_digest or 'none'} here; send the base first"
            )

    async def _receive_adapter(
        self, request: pb.UpdateWeightsRequest, group: weights_pb2.WeightGroup
    ) -> pb.UpdateWeightsResponse:  # fmt: skip
        version, limit_s = request.policy_version, request.begin_s or request.timeout_s
        begun = self._begun(request, serving=True)
        await self._guarded(version, "begin", limit_s, self._make_room(request.in_flight, limit_s))
        ready, taking = time.perf_counter(), self._ended(self._take_adapter(request, group))
        reports = await self._guarded(version, "transfer", request.timeout_s, taking)
        _log_arrival(version, reports, begin_s=ready - begun, arrival_s=time.perf_counter() - ready)
        digest = joined(self.base_digest, self._common_digest(version, reports))
        self._gate.arrived(version, digest)
        self._adapter = self._engine.loads, request.in_flight
        return _answer(reports, digest)

    async def _make_room(self, in_flight: InFlight, limit_s: float) -> None:
        if self._at_work is not None:
            await asyncio.wait([self._at_work])
        drain_s = {_KEEP: min(DRAIN_S, limit_s / 2), _WAIT: None}.get(in_flight, 0.0)
        await self._engine.adapters.make_room(drain_s)

    async def _take_adapter(self, request: pb.UpdateWeightsRequest, group: weights_pb2.WeightGroup) -> Reports:
        await self._engine.stage_weights(*_to_join(request, group), verify=request.verify)
        names = [tensor.name for sender in group.senders for tensor in sender.tensors]
        return await self._engine.load_adapter(sorted(set(names)), group.adapter_multiplier)

    def _begun(self, request: pb.UpdateWeightsRequest, *, serving: bool) -> float:
        self._gate.begin(request.policy_version, serving=serving)
        self._staged, self._adapter, self._timeout_s = None, None, request.timeout_s
        self._group = weights_pb2.WeightGroup()
        return time.perf_counter()

    def _common_digest(self, version: int, reports: Reports) -> str:
        digests = {report["digest"] for report in reports}
        if len(digests) > 1:
            self._gate.fail(version, f"its workers hold different weights: {sorted(digests)}")
            raise ServiceFaultError(self._gate.reason)
        return digests.pop()

    async def commit(self, request: pb.CommitWeightsRequest) -> pb.CommitWeightsResponse:
        """Serves what arrived."""
        version, digest, load_s = request.policy_version, request.weights_digest, 0.0
        timeout_s, begun, adapter = request.timeout_s or self._timeout_s, time.perf_counter(), None
        if self._gate.check(version, digest):  # first: responses that were kept must not go on with other weights
            if self._staged is not None:
                load_s = await self._load_staged(version, digest, timeout_s)
            adapter, self._adapter = self._adapter, None
            if adapter is None or self._halted:
                await self._guarded(version, "commit", timeout_s, self._ended(self._engine.resume()))
                self._halted = False
        pause_s = self._gate.commit(version, digest) if adapter is None else self._serve(adapter[0], version, digest)
        if adapter is not None and adapter[1] not in (_WAIT, _KEEP):
            await self._clear_the_way(_ABORT)  # those that it finds now began before
        spent = time.perf_counter() - begun
        log.info("version %d served after a pause of %.1f ms, its commit took %.1f", version, 1e3 * pause_s, 1e3 * spent)
        return pb.CommitWeightsResponse(policy_version=version, pause_s=pause_s, load_s=load_s)

    def _serve(self, load: int, version: int, digest: str) -> float:
        """All at once, so that no request comes between the version that is admitted and the adapter that it gets. Returns
        the seconds without service."""
        if self._gate.state == pb.REPLICA_STATE_HEALTHY:
            self._gate.pause(version, digest)
        self._engine.adapters.serve(load)
        self.served[load] = version, digest
        return self._gate.commit(version, digest)

    async def _load_staged(self, version: int, digest: str, timeout_s: float) -> float:
        """Returns the seconds that copying took."""
        request, self._staged = self._staged, None
        self._gate.pause(version, digest)
        self.base_digest = ""
        reports = await self._guarded(version, "commit", timeout_s, self._copying(request))
        self.served[self._engine.loads] = version, digest
        return max(report["seconds"]["load"] for report in reports)

    @property
    def is_ending(self) -> bool:
        """Whether the engine is not out of an update that was given up. It may hang; no other can begin before."""
        return self._at_work is not None and not self._at_work.done() and not self._awaited

    async def _beginning(self, request: pb.UpdateWeightsRequest, *, staged: bool) -> None:
        if self._at_work is not None:
            await asyncio.wait([self._at_work])
        if not staged:
            await self._halt(request)

    async def _arriving(
        self, request: pb.UpdateWeightsRequest, group: weights_pb2.WeightGroup, *, staged: bool
    ) -> Reports:  # fmt: skip
        receive = self._engine.stage_weights if staged else self._engine.update_weights
        return await receive(*_to_join(request, group), verify=request.verify)

    async def _copying(self, request: pb.UpdateWeightsRequest) -> Reports:
        await self._halt(request)
        return await self._ended(self._engine.load_staged(verify=request.verify))

    async def _halt(self, request: pb.UpdateWeightsRequest) -> None:
        in_flight = request.in_flight
        if in_flight == _KEEP and self._engine.adapters is not None:
            in_flight = _ABORT  # the adapter that they began with goes, with the weights that it was for
        await self._clear_the_way(in_flight)
        self._halted = True
        await self._ended(self._engine.halt(keep=in_flight == _KEEP))

    async def _ended(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """The engine's answer. It ends what it has begun also if the caller leaves; the next update waits for that."""
        self._at_work = task = asyncio.create_task(work)
        task.add_done_callback(lambda task: task.cancelled() or task.exception())  # told once, or to nobody
        self._awaited = True
        try:
            return await asyncio.shield(task)
        finally:
            self._awaited = False

    async def _guarded(self, version: int, phase: str, timeout_s: float, work: Awaitable[Answer]) -> Answer:
        """Tells the gate of whatever goes wrong, and raises it as a BatonError."""
        what, option = _PHASES[phase]
        try:
            async with asyncio.timeout(timeout_s):
                return await work
        except asyncio.CancelledError:
            self._gate.fail(version, "the caller gave it up")
            raise
        except DeadlineError as error:
            self._gate.fail(version, f"{phase}: {error}")
            raise DeadlineError(self._gate.reason) from error
        except TimeoutError:
            cause = f"{phase}: {what} within {timeout_s:g} s; raise deadlines.{option} if it is only slow"
            self._gate.fail(version, cause)
            raise DeadlineError(self._gate.reason) from None
        except BatonError as error:
            self._gate.fail(version, str(error))
            raise type(error)(self._gate.reason) from error
        except Exception as error:
            self._gate.fail(version, str(error))
            raise ServiceFaultError(self._gate.reason) from error


def _to_join(request: pb.UpdateWeightsRequest, group: weights_pb2.WeightGroup) -> tuple[bytes, str, int, float]:
    return group.SerializeToString(), group.group_id, request.first_rank, request.timeout_s


def _log_arrival(version: int, reports: Reports, *, begin_s: float, arrival_s: float) -> None:
    transfer_s = max(report["seconds"]["total"] for report in reports)
    milliseconds = (1e3 * seconds for seconds in (begin_s, arrival_s, transfer_s))
    log.info("version %d: %.1f ms to begin, %.1f to arrive, of which %.1f for the transfer", version, *milliseconds)


def _answer(reports: Sequence[dict[str, Any]], digest: str) -> pb.UpdateWeightsResponse:
    """Of workers that received the same weights; phases are the slowest one's."""
    slowest = {f"{phase}_s": max(report["seconds"][phase] for report in reports) for phase in reports[0]["seconds"]}
    return pb.UpdateWeightsResponse(
        weights_digest=digest,
        bytes=reports[0]["bytes"],
        phases=weights_pb2.PhaseSeconds(**slowest),
        path=max(report.get("path", weights_pb2.LOAD_PATH_UNSPECIFIED) for report in reports),
        transports=sorted({transport for report in reports for transport in report["transports"]}),
        verified_bytes=min(report["verified_bytes"] for report in reports),
    )
