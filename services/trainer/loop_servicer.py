"""The loop service's RPCs, on rank 0: collect a batch, run the command on every rank, remember the answer, encode it."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import numpy as np

from baton.api.trainer.v1 import loop_pb2 as pb
from baton.api.trainer.v1.loop_pb2_grpc import LoopServiceServicer
from baton.errors import InvalidRequestError, ServiceFaultError
from baton.samples import Samples
from services.trainer.models import Models
from services.trainer.ranks import Ranks
from services.trainer.scoring import joined

Context = grpc.aio.ServicerContext
Answer = TypeVar("Answer")


@dataclass(slots=True)
class _Role:
    """What was answered since a role's last update, and to that, by request id."""

    accumulated: dict[str, pb.ForwardBackwardResponse] = field(default_factory=dict)
    update: tuple[str, pb.OptimStepResponse] | None = None


class LoopServicer(LoopServiceServicer):
    """See loop.proto. Method names are gRPC's."""

    def __init__(self, models: Models, ranks: Ranks) -> None:
        self._models = models
        self._ranks = ranks
        self._roles: dict[str, _Role] = {}
        self._lock = asyncio.Lock()  # a request that is sent again must find the first one's answer

    async def ForwardBackward(
        self, request_iterator: AsyncIterator[pb.ForwardBackwardRequest], context: Context
    ) -> AsyncIterator[pb.ForwardBackwardResponse]:
        requests = [request async for request in request_iterator]
        parts = [Samples.from_proto(request.samples) for request in requests]
        if not requests or not sum(map(len, parts)):
            raise InvalidRequestError("the call has no samples; send at least one")
        request = requests[0]
        _check_id(request.request_id)
        per_sample = self._models.engine(request.role).head == "scores"
        request.samples.CopyFrom(Samples.concat(parts).to_proto())
        whole = await _finished(self._accumulate(request))
        head = pb.ForwardBackwardResponse()
        head.CopyFrom(whole)
        head.ClearField("scores")
        yield head
        for response in _scores(whole, parts, per_sample) if request.want_scores else ():
            yield response

    async def OptimStep(self, request: pb.OptimStepRequest, context: Context) -> pb.OptimStepResponse:
        _check_id(request.request_id)
        return await _finished(self._update(request))

    async def _accumulate(self, request: pb.ForwardBackwardRequest) -> pb.ForwardBackwardResponse:
        async with self._lock:
            role = request.role or "ppo_policy"
            answered = self._roles.setdefault(role, _Role()).accumulated
            if request.request_id not in answered:
                try:
                    raw = await self._ranks.execute("ForwardBackward", request.SerializeToString())
                except ServiceFaultError as error:  # a refusal comes before the first gradient, and from all ranks
                    answered.clear()
                    await self._ranks.execute("ClearGradients", role.encode())
                    raise ServiceFaultError(
                        f"the gradients of {role} since its last update are gone, those of the calls before this one too: "
                        f"begin that update anew. The fault was: {error}"
                    ) from error
                answered[request.request_id] = _combined([pb.ForwardBackwardResponse.FromString(part) for part in raw])
            return answered[request.request_id]

    async def _update(self, request: pb.OptimStepRequest) -> pb.OptimStepResponse:
        async with self._lock:
            role = self._roles.setdefault(request.role or "ppo_policy", _Role())
            if role.update is None or role.update[0] != request.request_id:
                raw = await self._ranks.execute("OptimStep", request.SerializeToString())
                role.update = request.request_id, pb.OptimStepResponse.FromString(raw[0])
                role.accumulated.clear()
            return role.update[1]


async def _finished(call: Coroutine[Any, Any, Answer]) -> Answer:
    """The call's answer. It goes on if the caller leaves: ranks finish what they began, and a repeat must find that."""
    return await asyncio.shield(asyncio.create_task(call))


def _check_id(request_id: str) -> None:
    if not request_id:
        raise InvalidRequestError("request_id is empty; give each call one of its own, as a UUID")


def _combined(parts: list[pb.ForwardBackwardResponse]) -> pb.ForwardBackwardResponse:
    """Adds up what the ranks counted and joins their scores."""
    sums: dict[str, float] = {}
    for part in parts:
        for name, value in part.metrics.items():
            sums[name] = sums.get(name, 0.0) + value
    answer = pb.ForwardBackwardResponse(
        metrics=sums, response_tokens=sum(part.response_tokens for part in parts),
        computed_tokens=sum(part.computed_tokens for part in parts),
    )  # fmt: skip
    answer.scores.values = joined([part.scores.values for part in parts])
    return answer


def _scores(
    whole: pb.ForwardBackwardResponse, parts: list[Samples], per_sample: bool
) -> list[pb.ForwardBackwardResponse]:
    """The scores of each request message: as many rows as it had samples."""
    values = np.frombuffer(whole.scores.values, "<f4")
    answers, start = [], 0
    for part in parts:
        lengths = np.ones(len(part), "<u4") if per_sample else part.response_ids.lengths.astype("<u4")
        end = start + int(lengths.sum())
        answer = pb.ForwardBackwardResponse()
        answer.scores.values, answer.scores.lengths = values[start:end].tobytes(), lengths.tobytes()
        answers.append(answer)
        start = end
    return answers
