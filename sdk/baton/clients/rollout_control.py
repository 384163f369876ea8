"""Client that takes one rollout replica aside."""

from collections.abc import Sequence
from typing import Literal

from baton.api.rollout.v1 import control_pb2 as pb
from baton.api.rollout.v1.control_pb2_grpc import RolloutControlServiceStub
from baton.channel import ServiceClient

InFlight = Literal["abort", "wait", "keep"]
"""What becomes of responses under way: they end with the tokens that they have, are waited for, or stand still meanwhile."""

IN_FLIGHT = {"abort": pb.IN_FLIGHT_ABORT, "wait": pb.IN_FLIGHT_WAIT, "keep": pb.IN_FLIGHT_KEEP}
"""Their names on the wire."""


class RolloutControlClient(ServiceClient):
    """Pauses one replica, puts it to sleep, and ends what it has under way. Errors: see `baton.errors`."""

    SERVICE = "baton.api.rollout.v1.RolloutControlService"
    STUB = RolloutControlServiceStub
    RETRIED = ("Abort", "Pause", "Resume", "Sleep", "Wake")

    async def abort(self, group_ids: Sequence[str] = ()) -> int:
        """Ends these groups, or all: they are answered with the tokens that they have. Returns how many were under way."""
        return (await self._call("Abort", pb.AbortRequest(group_ids=group_ids))).aborted_groups

    async def pause(self, in_flight: InFlight = "wait", *, timeout_s: float = 600.0) -> int:
        """Has the replica refuse new requests, and returns the responses that stand still once the others are done.

        Raises DeadlineError if they are not within `timeout_s`; it stays paused then.
        """
        request = pb.PauseRequest(in_flight=IN_FLIGHT[in_flight], timeout_s=timeout_s)
        return (await self._call("Pause", request, timeout_s + 35)).running_requests

    async def resume(self) -> None:
        """Ends a pause."""
        await self._call("Resume", pb.ResumeRequest())

    async def sleep(self, level: int = 1) -> None:
        """Gives the accelerator's memory back: the weights go to the host's memory (level 1) or away (2).

        Raises NotReadyError while responses are under way, InvalidRequestError on a replica that cannot sleep.
        """
        await self._call("Sleep", pb.SleepRequest(level=level))

    async def wake(self) -> None:
        """Takes the memory again. After a sleep of level 2 the replica needs new weights."""
        await self._call("Wake", pb.WakeRequest())
