"""The RPCs of a replica: decode, one call, encode."""

from collections.abc import AsyncIterator

import grpc

from baton.api.rollout.v1 import control_pb2
from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.api.rollout.v1.control_pb2_grpc import (
    RolloutControlServiceServicer,
    add_RolloutControlServiceServicer_to_server,
)  # fmt: skip
from baton.api.rollout.v1.rollout_pb2_grpc import RolloutServiceServicer, add_RolloutServiceServicer_to_server
from services.rollout.service import Replica

SERVICES = ["baton.api.rollout.v1.RolloutService", "baton.api.rollout.v1.RolloutControlService"]


def add_services(server: grpc.aio.Server, replica: Replica) -> None:
    """Registers SERVICES."""
    add_RolloutServiceServicer_to_server(RolloutServicer(replica), server)
    add_RolloutControlServiceServicer_to_server(RolloutControlServicer(replica), server)


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


class RolloutControlServicer(RolloutControlServiceServicer):
    """See control.proto."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def Abort(self, request: control_pb2.AbortRequest, context: grpc.aio.ServicerContext) -> control_pb2.AbortResponse:
        return control_pb2.AbortResponse(aborted_groups=await self._replica.abort(request.group_ids))

    async def Pause(self, request: control_pb2.PauseRequest, context: grpc.aio.ServicerContext) -> control_pb2.PauseResponse:
        return control_pb2.PauseResponse(running_requests=await self._replica.pause(request.in_flight, request.timeout_s))

    async def Resume(
        self, request: control_pb2.ResumeRequest, context: grpc.aio.ServicerContext
    ) -> control_pb2.ResumeResponse:
        await self._replica.resume()
        return control_pb2.ResumeResponse()

    async def Sleep(self, request: control_pb2.SleepRequest, context: grpc.aio.ServicerContext) -> control_pb2.SleepResponse:
        await self._replica.sleep(request.level)
        return control_pb2.SleepResponse()

    async def Wake(self, request: control_pb2.WakeRequest, context: grpc.aio.ServicerContext) -> control_pb2.WakeResponse:
        await self._replica.wake()
        return control_pb2.WakeResponse()
