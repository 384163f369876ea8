"""The scoring service's RPCs, on rank 0: decode, run the command on every rank, encode."""

import asyncio
from collections.abc import AsyncIterator

import grpc

from baton.api.trainer.v1 import scoring_pb2 as pb
from baton.api.trainer.v1.scoring_pb2_grpc import ScoringServiceServicer
from services.trainer.ranks import Ranks
from services.trainer.scoring import joined, ragged
from services.trainer.texts import Texts

Context = grpc.aio.ServicerContext


class ScoringServicer(ScoringServiceServicer):
    """See scoring.proto. Method names are gRPC's."""

    def __init__(self, ranks: Ranks, texts: Texts) -> None:
        self._ranks = ranks
        self._texts = texts

    async def ComputeLogprobs(
        self, request_iterator: AsyncIterator[pb.ComputeLogprobsRequest], context: Context
    ) -> AsyncIterator[pb.ComputeLogprobsResponse]:
        async for request in request_iterator:
            values = joined(await self._ranks.execute("ComputeLogprobs", request.SerializeToString()))
            yield pb.ComputeLogprobsResponse(logprobs=ragged(values, request.samples.response_ids))

    async def ComputeValues(
        self, request_iterator: AsyncIterator[pb.ComputeValuesRequest], context: Context
    ) -> AsyncIterator[pb.ComputeValuesResponse]:
        async for request in request_iterator:
            values = joined(await self._ranks.execute("ComputeValues", request.SerializeToString()))
            yield pb.ComputeValuesResponse(values=ragged(values, request.samples.response_ids))

    async def ComputeScores(
        self, request_iterator: AsyncIterator[pb.ComputeScoresRequest], context: Context
    ) -> AsyncIterator[pb.ComputeScoresResponse]:
        async for request in request_iterator:
            scores = joined(await self._ranks.execute("ComputeScores", request.SerializeToString()))
            yield pb.ComputeScoresResponse(scores=scores)

    async def Tokenize(
        self, request_iterator: AsyncIterator[pb.TokenizeRequest], context: Context
    ) -> AsyncIterator[pb.TokenizeResponse]:
        async for request in request_iterator:
            samples = await asyncio.to_thread(self._texts.tokenize, request.records, request.role)
            yield pb.TokenizeResponse(samples=samples.to_proto())
