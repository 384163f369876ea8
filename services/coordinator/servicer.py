"""The gRPC face of the coordinator: decode, one call, encode."""

from collections.abc import AsyncIterator

import grpc

from baton.api.coordinator.v1 import coordinator_pb2 as pb
from baton.api.coordinator.v1.coordinator_pb2_grpc import CoordinatorServiceServicer
from services.coordinator.coordinator import Coordinator
from services.coordinator.events import Event
from services.coordinator.resuming import Resume


class CoordinatorServicer(CoordinatorServiceServicer):
    """Implements CoordinatorService; the errors are those of the domain calls."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    async def StartRun(self, request: pb.StartRunRequest, context: grpc.aio.ServicerContext) -> pb.StartRunResponse:
        resume = None
        if request.resume:
            resume = Resume(request.resume_step if request.HasField("resume_step") else None)
        return pb.StartRunResponse(status=_status(self._coordinator.start_run(request.run_id, resume)))

    async def StopRun(self, request: pb.StopRunRequest, context: grpc.aio.ServicerContext) -> pb.StopRunResponse:
        event = self._coordinator.stop_run(request.run_id, save_checkpoint=request.save_checkpoint)
        return pb.StopRunResponse(status=_status(event))

    async def GetRun(self, request: pb.GetRunRequest, context: grpc.aio.ServicerContext) -> pb.GetRunResponse:
        return pb.GetRunResponse(status=_status(self._coordinator.get_run(request.run_id)))

    async def WatchRun(
        self, request: pb.WatchRunRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.WatchRunResponse]:
        async for event in self._coordinator.watch_run(request.run_id):
            report = None
            if event.report is not None:
                report = pb.EpisodeReport(episode_id=event.report.episode_id, metrics=event.report.metrics)
            yield pb.WatchRunResponse(status=_status(event), report=report)


def _status(event: Event) -> pb.RunStatus:
    state = event.state
    return pb.RunStatus(
        run_id=state.run_id,
        state=pb.RunState.Value(f"RUN_STATE_{state.life.name}"),
        episode=state.episode,
        num_episodes=state.num_episodes,
        phase=state.phase,
        policy_version=state.policy_version,
        weights_digest=state.weights_digest,
        global_step=state.global_step,
        error=state.error,
        output_dir=state.output_dir,
        dashboard_url=state.dashboard_url,
        elapsed_s=event.elapsed_s,
    )
