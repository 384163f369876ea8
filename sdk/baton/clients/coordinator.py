"""Client of the coordinator."""

from collections.abc import AsyncIterator

from baton.api.coordinator.v1 import coordinator_pb2 as pb
from baton.api.coordinator.v1.coordinator_pb2_grpc import CoordinatorServiceStub
from baton.channel import ServiceClient

WATCH_S = 365 * 24 * 3600.0
"""Deadline of a watch that is given none: a run may take months."""


class CoordinatorClient(ServiceClient):
    """Starts, watches and stops a run. Errors: see `baton.errors`."""

    SERVICE = "baton.api.coordinator.v1.CoordinatorService"
    STUB = CoordinatorServiceStub
    RETRIED = ("StartRun", "StopRun", "GetRun")

    async def start_run(self, run_id: str, *, resume: bool = False, resume_step: int | None = None) -> pb.RunStatus:
        """Begins the run of the coordinator's run file, or goes on from its newest checkpoint, or from that of an optimizer
        step."""
        request = pb.StartRunRequest(run_id=run_id, resume=resume, resume_step=resume_step)
        return (await self._call("StartRun", request)).status

    async def stop_run(self, run_id: str, *, save_checkpoint: bool = False) -> pb.RunStatus:
        """Ends the run after the step in flight."""
        request = pb.StopRunRequest(run_id=run_id, save_checkpoint=save_checkpoint)
        return (await self._call("StopRun", request)).status

    async def get_run(self, run_id: str = "") -> pb.RunStatus:
        """A snapshot of the run."""
        return (await self._call("GetRun", pb.GetRunRequest(run_id=run_id))).status

    async def watch_run(self, run_id: str = "", *, timeout_s: float = WATCH_S) -> AsyncIterator[pb.WatchRunResponse]:
        """Yields an event for each phase and each finished episode, from the run's beginning, until it ends."""
        async for event in self._stream("WatchRun", pb.WatchRunRequest(run_id=run_id), timeout_s):
            yield event
