"""Client of the buffer service."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np

from baton.api.buffer.v1 import buffer_pb2 as pb
from baton.api.buffer.v1.buffer_pb2_grpc import BufferServiceStub
from baton.channel import ServiceClient
from baton.samples import Samples


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One leased micro-batch. `wrapped` [size] is True where a sample repeats one of this pass to fill the last step."""

    lease_id: str
    samples: Samples
    wrapped: np.ndarray


@dataclass(frozen=True, slots=True)
class EpisodeCounts:
    """Samples of an episode by ledger state, and the groups that are stored."""

    stored: int
    leased: int
    trained: int
    closed: bool
    group_ids: list[str]


class BufferClient(ServiceClient):
    """Puts, leases and acknowledges samples; keeps small run state. Errors: see `baton.errors`."""

    SERVICE = "baton.api.buffer.v1.BufferService"
    STUB = BufferServiceStub
    RETRIED = (
        "OpenEpisode", "Put", "CloseEpisode", "Lease", "Ack", "GetEpisode", "DeleteEpisode", "PutState", "GetState",
    )  # fmt: skip

    async def open_episode(
        self, run_id: str, episode_id: int, *, expected_samples: int | None, global_batch_size: int, micro_batch_size: int
    ) -> int:
        """Declares an episode: fixed if `expected_samples` is given, else dynamic. Returns how many samples it holds."""
        kind = pb.EPISODE_KIND_DYNAMIC if expected_samples is None else pb.EPISODE_KIND_FIXED
        request = pb.OpenEpisodeRequest(
            run_id=run_id, episode_id=episode_id, kind=kind, expected_samples=expected_samples or 0,
            global_batch_size=global_batch_size, micro_batch_size=micro_batch_size,
        )  # fmt: skip
        return (await self._call("OpenEpisode", request)).stored_samples

    async def put(self, run_id: str, episode_id: int, samples: Samples, *, request_id: str | None = None) -> int:
        """Appends samples, in as many messages as their size asks for. Returns how many the episode holds now.

        With a `request_id` of the caller's own, the same put sent again stores nothing twice.
        """
        stem, stored = request_id or uuid.uuid4().hex, 0
        for part, piece in enumerate(samples.split()):
            request = pb.PutRequest(
                run_id=run_id, episode_id=episode_id, request_id=f"{stem}/{part}", samples=piece.to_proto()
            )
            stored = (await self._call("Put", request)).stored_samples
        return stored

    async def close_episode(self, run_id: str, episode_id: int) -> tuple[int, int]:
        """Ends the episode's rollout. Returns (total samples, optimizer steps per pass)."""
        answer = await self._call("CloseEpisode", pb.CloseEpisodeRequest(run_id=run_id, episode_id=episode_id))
        return answer.total_samples, answer.steps_per_pass

    async def lease(
        self, run_id: str, episode_id: int, *, pass_index: int, step_index: int, data_parallel_rank: int = 0,
        data_parallel_size: int = 1, shuffle_seed: int = 0, wait_s: float = 60.0,
    ) -> AsyncIterator[MicroBatch]:  # fmt: skip
        """Yields this rank's micro-batches of one step, as they become available."""
        request = pb.LeaseRequest(
            run_id=run_id, episode_id=episode_id, pass_index=pass_index, step_index=step_index,
            data_parallel_rank=data_parallel_rank, data_parallel_size=data_parallel_size,
            shuffle_seed=shuffle_seed, wait_s=wait_s,
        )  # fmt: skip
        async for message in self._stream("Lease", request, wait_s + self.timeout_s):
            samples = Samples.from_proto(message.samples)
            yield MicroBatch(message.lease_id, samples, np.frombuffer(message.wrapped, np.uint8).astype(bool))

    async def ack(self, run_id: str, episode_id: int, lease_id: str, *, global_step: int) -> int:
        """Marks the leased step as trained. Returns the acknowledged steps of its pass."""
        request = pb.AckRequest(run_id=run_id, episode_id=episode_id, lease_id=lease_id, global_step=global_step)
        return (await self._call("Ack", request)).acked_steps

    async def get_episode(self, run_id: str, episode_id: int) -> EpisodeCounts:
        """Counts an episode's samples by state."""
        answer = await self._call("GetEpisode", pb.GetEpisodeRequest(run_id=run_id, episode_id=episode_id))
        return EpisodeCounts(
            answer.stored_samples, answer.leased_samples, answer.trained_samples, answer.closed, list(answer.group_ids)
        )

    async def delete_episode(self, run_id: str, episode_id: int) -> int:
        """Frees a wholly trained episode. Returns how many samples were removed."""
        request = pb.DeleteEpisodeRequest(run_id=run_id, episode_id=episode_id)
        return (await self._call("DeleteEpisode", request)).deleted_samples

    async def put_state(self, run_id: str, name: str, value: bytes, *, expected_revision: int) -> int:
        """Stores a small value if nobody else did since `expected_revision`. Returns the new revision."""
        request = pb.PutStateRequest(run_id=run_id, name=name, value=value, expected_revision=expected_revision)
        return (await self._call("PutState", request)).revision

    async def get_state(self, run_id: str, name: str) -> tuple[bytes, int]:
        """Returns (value, revision); (b"", 0) if it was never put."""
        answer = await self._call("GetState", pb.GetStateRequest(run_id=run_id, name=name))
        return answer.value, answer.revision
