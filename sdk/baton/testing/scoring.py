"""FakeScoring: the models of a trainer group as functions of samples."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import numpy as np

from baton.api.common.v1 import samples_pb2
from baton.api.trainer.v1 import scoring_pb2 as pb
from baton.api.trainer.v1.scoring_pb2_grpc import ScoringServiceServicer
from baton.errors import InvalidRequestError
from baton.samples import Ragged, Samples

PerSample = Callable[[str, Samples], Sequence[Any]]
"""(role, samples) -> one row per sample: a sequence per response token, or a number for scores."""


def _filled(value: float) -> PerSample:
    return lambda role, samples: [np.full(length, value, np.float32) for length in samples.response_ids.lengths]


class FakeScoring(ScoringServiceServicer):
    """Combine it with FakeTrainer by inheriting from both. Scripted by its attributes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hosted = ("ppo_policy", "reference", "value", "ppo_value", "reward")
        self.logprobs: PerSample = _filled(-1.0)
        self.values: PerSample = _filled(0.5)
        self.scores: PerSample = lambda role, samples: [1.0] * len(samples)
        self.scored: list[tuple[str, str, Samples]] = []
        """(method, role, samples) of every request message so far."""

    async def ComputeLogprobs(
        self, requests: AsyncIterator[pb.ComputeLogprobsRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.ComputeLogprobsResponse]:
        async for request in requests:
            samples = self._take("ComputeLogprobs", request, request.role or "ppo_policy")
            yield pb.ComputeLogprobsResponse(logprobs=_column(self.logprobs(request.role, samples)))

    async def ComputeValues(
        self, requests: AsyncIterator[pb.ComputeValuesRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.ComputeValuesResponse]:
        async for request in requests:
            samples = self._take("ComputeValues", request, request.role or "value")
            yield pb.ComputeValuesResponse(values=_column(self.values(request.role, samples)))

    async def ComputeScores(
        self, requests: AsyncIterator[pb.ComputeScoresRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.ComputeScoresResponse]:
        async for request in requests:
            samples = self._take("ComputeScores", request, request.role or "reward")
            yield pb.ComputeScoresResponse(scores=np.asarray(self.scores(request.role, samples), "<f4").tobytes())

    async def Tokenize(
        self, requests: AsyncIterator[pb.TokenizeRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.TokenizeResponse]:
        """One token per byte of a text."""
        async for request in requests:
            prompts = [record.prompt_text or "".join(turn.content for turn in record.chat) for record in request.records]
            samples = Samples(
                [record.sample_id for record in request.records],
                group_ids=[record.group_id for record in request.records],
                prompt_ids=Ragged.of([list(prompt.encode()) for prompt in prompts], np.int32),
                response_ids=Ragged.of([list(record.completion.encode()) for record in request.records], np.int32),
            )
            yield pb.TokenizeResponse(samples=samples.to_proto())

    def _take(self, method: str, request: Any, role: str) -> Samples:
        if role not in self.hosted:
            raise InvalidRequestError(f"this trainer group hosts {', '.join(self.hosted)}, and not {role}")
        samples = Samples.from_proto(request.samples)
        self.scored.append((method, role, samples))
        return samples


def _column(rows: Sequence[Any]) -> samples_pb2.Ragged:
    column = Ragged.of(rows, np.float32)
    return samples_pb2.Ragged(values=column.values.astype("<f4").tobytes(), lengths=column.lengths.astype("<u4").tobytes())
