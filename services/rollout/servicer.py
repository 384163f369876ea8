"""The rollout service's RPCs: decode, one call, encode."""

from collections.abc import AsyncIterator

import grpc

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.api.rollout.v1.rollout_pb2_grpc import RolloutServiceServicer
from services.rollout.service import Replica


class RolloutServicer(RolloutServiceServicer):
    """See rollout.proto."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateResponse]:
        async for group in self._replica.generate(request):
            yield group

    async def GetStatus(self, request: pb.GetStatusRequest, context: grpc.aio.ServicerContext) -> pb.GetStatusResponse:
        return self._replica.status()

    async def UpdateWeights(
        self, request: pb.UpdateWeightsRequest, context: grpc.aio.ServicerContext
    ) -> pb.UpdateWeightsResponse:
        return await self._replica.update_weights(
            request.policy_version, request.group, request.first_rank, request.timeout_s
        )

    async def CommitWeights(
        self, request: pb.CommitWeightsRequest, context: grpc.aio.ServicerContext
    ) -> pb.CommitWeightsResponse:
        return await self._replica.commit_weights(request.policy_version, request.weights_digest)
