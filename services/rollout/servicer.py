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
            request.policy_version, request.group, request.first_rank, request.timeout_s, request.in_flight
        )

    async def CommitWeights(
        self, request: pb.CommitWeightsRequest, context: grpc.aio.ServicerContext
    ) -> pb.CommitWeightsResponse:
        return await self._replica.commit_weights(request.policy_version, request.weights_digest)

    async def Abort(self, request: pb.AbortRequest, context: grpc.aio.ServicerContext) -> pb.AbortResponse:
        return pb.AbortResponse(aborted_groups=await self._replica.abort(request.group_ids))

    async def Pause(self, request: pb.PauseRequest, context: grpc.aio.ServicerContext) -> pb.PauseResponse:
        return pb.PauseResponse(running_requests=await self._replica.pause(request.in_flight, request.timeout_s))

    async def Resume(self, request: pb.ResumeRequest, context: grpc.aio.ServicerContext) -> pb.ResumeResponse:
        await self._replica.resume()
        return pb.ResumeResponse()

    async def Sleep(self, request: pb.SleepRequest, context: grpc.aio.ServicerContext) -> pb.SleepResponse:
        await self._replica.sleep(request.level)
        return pb.SleepResponse()

    async def Wake(self, request: pb.WakeRequest, context: grpc.aio.ServicerContext) -> pb.WakeResponse:
        await self._replica.wake()
        return pb.WakeResponse()
