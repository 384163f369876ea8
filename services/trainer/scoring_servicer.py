"""The scoring service's RPCs, on rank 0: decode, run the command on every rank, encode."""

from collections.abc import AsyncIterator

import grpc
import numpy as np

from baton.api.trainer.v1 import scoring_pb2 as pb
from baton.api.trainer.v1.scoring_pb2_grpc import ScoringServiceServicer
from services.trainer.ranks import Ranks
from services.trainer.trainer import combine_logprobs

Context = grpc.aio.ServicerContext


class ScoringServicer(ScoringServiceServicer):
    """See scoring.proto. Method names are gRPC's."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    async def ComputeLogprobs(
        self, request_iterator: AsyncIterator[pb.ComputeLogprobsRequest], context: Context
    ) -> AsyncIterator[pb.ComputeLogprobsResponse]:
        async for request in request_iterator:
            parts = await self._ranks.execute("ComputeLogprobs", request.samples.SerializeToString())
            lengths = np.frombuffer(request.samples.response_ids.lengths, "<u4")
            yield pb.ComputeLogprobsResponse(logprobs=combine_logprobs(parts, lengths))
