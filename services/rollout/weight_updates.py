"""A replica's weight updates: what arrives, and when it is served.

    receive: nothing is served while weights arrive         -> commit: they are served
    staged:  the old ones are served while weights arrive   -> commit: a pause to copy them; they are served
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
from baton.errors import BatonError, DeadlineError, ServiceFaultError
from services.common.weight_sync.plan import payload_of
from services.rollout.generation import RolloutEngine
from services.rollout.versions import VersionGate

log = logging.getLogger(__name__)

Reports = list[dict[str, Any]]
Answer = TypeVar("Answer")

_PHASES = {
    "begin": ("the engine did not stand still, or an earlier update had not ended,", "publish_begin_s"),
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
        self._staged: pb.UpdateWeightsRequest | None = None
        self._timeout_s = 0.0  # of the last transfer
        self.served = {0: (0, "")}
        """Version and digest, by the engine's count of weights."""

    async def receive(self, request: pb.UpdateWeightsRequest) -> pb.UpdateWeightsResponse:
        """Receives a version. If that fails, the replica is STALE, and serves nothing until a whole update is committed;
        while it was staged, it goes on with what it serves."""
        version, room = request.policy_version, self._engine.staging_bytes
        staged = bool(room) and payload_of(request.group) <= room
        self._gate.begin(version, serving=staged)
        self._staged, self._timeout_s, begun = request if staged else None, request.timeout_s, time.perf_counter()
        await self._guarded(version, "begin", request.begin_s or request.timeout_s, self._beginning(request, staged=staged))
        arriving, ready = self._engine.stage_weights if staged else self._engine.update_weights, time.perf_counter()
        reports = await self._guarded(
            version, "transfer", request.timeout_s, self._ended(arriving(*_to_join(request), verify=request.verify))
        )
        _log_arrival(version, reports, begin_s=ready - begun, arrival_s=time.perf_counter() - ready)
        digests = {report["digest"] for report in reports}
        if len(digests) > 1:
            self._gate.fail(version, f"its workers hold different weights: {sorted(digests)}")
            raise ServiceFaultError(self._gate.reason)
        digest = digests.pop()
        self._gate.arrived(version, digest)
        if not staged:
            self.served[self._engine.loads] = version, digest
        return _answer(reports)

    async def commit(self, request: pb.CommitWeightsRequest) -> pb.CommitWeightsResponse:
        """Serves what arrived."""
        version, digest, load_s = request.policy_version, request.weights_digest, 0.0
        timeout_s, begun = request.timeout_s or self._timeout_s, time.perf_counter()
        if self._gate.check(version, digest):  # first: responses that were kept must not go on with other weights
            if self._staged is not None:
                load_s = await self._load_staged(version, digest, timeout_s)
            await self._guarded(version, "commit", timeout_s, self._ended(self._engine.resume()))
        pause_s = self._gate.commit(version, digest)
        spent = time.perf_counter() - begun
        log.info("version %d served after a pause of %.1f ms, its commit took %.1f", version, 1e3 * pause_s, 1e3 * spent)
        return pb.CommitWeightsResponse(policy_version=version, pause_s=pause_s, load_s=load_s)

    async def _load_staged(self, version: int, digest: str, timeout_s: float) -> float:
        """Returns the seconds that copying took."""
        request, self._staged = self._staged, None
        self._gate.pause(version, digest)
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

    async def _copying(self, request: pb.UpdateWeightsRequest) -> Reports:
        await self._halt(request)
        return await self._ended(self._engine.load_staged(verify=request.verify))

    async def _halt(self, request: pb.UpdateWeightsRequest) -> None:
        await self._clear_the_way(request.in_flight)
        await self._ended(self._engine.halt(keep=request.in_flight == control_pb2.IN_FLIGHT_KEEP))

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


def _to_join(request: pb.UpdateWeightsRequest) -> tuple[bytes, str, int, float]:
    return request.group.SerializeToString(), request.group.group_id, request.first_rank, request.timeout_s


def _log_arrival(version: int, reports: Reports, *, begin_s: float, arrival_s: float) -> None:
    transfer_s = max(report["seconds"]["total"] for report in reports)
    milliseconds = (1e3 * seconds for seconds in (begin_s, arrival_s, transfer_s))
    log.info("version %d: %.1f ms to begin, %.1f to arrive, of which %.1f for the transfer", version, *milliseconds)


def _answer(reports: Sequence[dict[str, Any]]) -> pb.UpdateWeightsResponse:
    """Of workers that received the same weights; phases are the slowest one's."""
    slowest = {f"{phase}_s": max(report["seconds"][phase] for report in reports) for phase in reports[0]["seconds"]}
    return pb.UpdateWeightsResponse(
        weights_digest=reports[0]["digest"],
        bytes=reports[0]["bytes"],
        phases=weights_pb2.PhaseSeconds(**slowest),
        path=max(report.get("path", weights_pb2.LOAD_PATH_UNSPECIFIED) for report in reports),
        transports=sorted({transport for report in reports for transport in report["transports"]}),
        verified_bytes=min(report["verified_bytes"] for report in reports),
    )
