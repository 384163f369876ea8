"""Client of what agents sampled through one replica's OpenAI-compatible HTTP server."""

from collections.abc import Sequence
from urllib.parse import quote

from baton.api.rollout.v1 import recording_pb2 as pb
from baton.api.rollout.v1.recording_pb2_grpc import RolloutRecordingServiceStub
from baton.channel import ServiceClient
from baton.clients.rollout import Generation
from baton.samples import Samples


class RolloutRecordingClient(ServiceClient):
    """Has agents sample into groups, and takes the groups. Errors: see `baton.errors`."""

    SERVICE = "baton.api.rollout.v1.RolloutRecordingService"
    STUB = RolloutRecordingServiceStub
    RETRIED = ("GetServer", "ForgetRecorded")

    async def base_url(self, group_id: str = "") -> str:
        """For an OpenAI client: what it samples is recorded as `group_id`; without one, under each answer's own `id`.

        Raises NotFoundError for a replica without such a server.
        """
        port = (await self._call("GetServer", pb.GetServerRequest())).port
        group = f"/groups/{quote(group_id, safe='')}" if group_id else ""
        return f"http://{self.address.rpartition(':')[0]}:{port}{group}/v1"

    async def recorded(
        self, group_ids: Sequence[str] = (), *, episode_id: int = 0, timeout_s: float = 60.0
    ) -> list[Generation]:  # fmt: skip
        """The finished responses of these groups, or of all: one entry for each request, in order. They stay recorded."""
        request = pb.ListRecordedRequest(group_ids=group_ids, episode_id=episode_id)
        return [
            Generation(Samples.from_proto(message.samples), list(message.texts))
            async for message in self._stream("ListRecorded", request, timeout_s)
        ]

    async def forget(self, taken: Sequence[Generation]) -> int:
        """Drops what `recorded` gave, once it is in the buffer; what agents have sampled since stays.

        Returns how many samples that were.
        """
        sample_ids = [sample_id for generation in taken for sample_id in generation.samples.sample_ids]
        return (await self._call("ForgetRecorded", pb.ForgetRecordedRequest(sample_ids=sample_ids))).samples
