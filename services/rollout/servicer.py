"""The RPCs of a replica: decode, one call, encode."""

from collections.abc import AsyncIterator

import grpc

from baton.api.rollout.v1 import control_pb2, recording_pb2
from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.api.rollout.v1.control_pb2_grpc import (
    RolloutControlServiceServicer,
    add_RolloutControlServiceServicer_to_server,
)  # fmt: skip
from baton.api.rollout.v1.recording_pb2_grpc import (
    RolloutRecordingServiceServicer,
    add_RolloutRecordingServiceServicer_to_server,
)  # fmt: skip
from baton.api.rollout.v1.rollout_pb2_grpc import RolloutServiceServicer, add_RolloutServiceServicer_to_server
from baton.errors import NotFoundError
from services.rollout.recordings import Recordings
from services.rollout.service import Replica

SERVICES = [f"baton.api.rollout.v1.Rollout{name}Service" for name in ("", "Control", "Recording")]


def add_services(
    server: grpc.aio.Server, replica: Replica, recordings: Recordings | None = None, openai_port: int = 0
) -> None:
    """Registers SERVICES. A replica without an OpenAI-compatible server has no `recordings`."""
    add_RolloutServiceServicer_to_server(RolloutServicer(replica), server)
    add_RolloutControlServiceServicer_to_server(RolloutControlServicer(replica), server)
    add_RolloutRecordingServiceServicer_to_server(RolloutRecordingServicer(recordings or Recordings(0), openai_port), server)


class RolloutServicer(RolloutServiceServicer):
    """See rollout.proto."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateResponse]:
        async for group in self._replica.generate(request):
            yield group

    async def MeasurePrompts(
        self, request: pb.MeasurePromptsRequest, context: grpc.aio.ServicerContext
    ) -> pb.MeasurePromptsResponse:
        return pb.MeasurePromptsResponse(lengths=self._replica.measure(request.prompts))

    async def GetStatus(self, request: pb.GetStatusRequest, context: grpc.aio.ServicerContext) -> pb.GetStatusResponse:
        return self._replica.status()

    async def UpdateWeights(
        self, request: pb.UpdateWeightsRequest, context: grpc.aio.ServicerContext
    ) -> pb.UpdateWeightsResponse:
        return await self._replica.update_weights(request)

    async def CommitWeights(
        self, request: pb.CommitWeightsRequest, context: grpc.aio.ServicerContext
    ) -> pb.CommitWeightsResponse:
        return await self._replica.commit_weights(request)


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


class RolloutRecordingServicer(RolloutRecordingServiceServicer):
    """See recording.proto."""

    def __init__(self, recordings: Recordings, openai_port: int) -> None:
        self._recordings = recordings
        self._openai_port = openai_port

    async def GetServer(
        self, request: recording_pb2.GetServerRequest, context: grpc.aio.ServicerContext
    ) -> recording_pb2.GetServerResponse:
        if not self._openai_port:
            raise NotFoundError("static batches have no OpenAI-compatible server; set models.policy.generator to vllm")
        return recording_pb2.GetServerResponse(port=self._openai_port)

    async def ListRecorded(
        self, request: recording_pb2.ListRecordedRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[recording_pb2.ListRecordedResponse]:
        for answered in list(self._recordings.listed(request.group_ids, request.episode_id)):
            yield recording_pb2.ListRecordedResponse(samples=answered.samples.to_proto(), texts=answered.texts)

    async def ForgetRecorded(
        self, request: recording_pb2.ForgetRecordedRequest, context: grpc.aio.ServicerContext
    ) -> recording_pb2.ForgetRecordedResponse:
        return recording_pb2.ForgetRecordedResponse(samples=self._recordings.forget(request.sample_ids))
