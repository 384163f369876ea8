"""Client of the buffer's data path."""

import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np

from baton import bulk
from baton.api.buffer.v1 import buffer_pb2 as pb
from baton.api.buffer.v1.buffer_pb2_grpc import BufferServiceStub
from baton.bulk import BulkMessage, Encoded
from baton.channel import ServiceClient
from baton.errors import InvalidRequestError
from baton.samples import GROUP_BYTES, MESSAGE_BYTES, Samples

REQUEST_BYTES = 8 * 2**20
"""About how much one request brings; a larger group goes alone."""
CHUNK_BYTES = 2**20
"""About how much one message of a request brings, and what the store then keeps as one value: larger ones fall out of
caches on their way, which costs a fifth of the rate."""
SAMPLE_BYTES, PUT_BYTES = MESSAGE_BYTES, 2**30
"""The most that a sample and one call of `put` may have: a sample goes into a message, a group into a request."""


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
    """Puts, leases and acknowledges samples. Errors: see `baton.errors`."""

    SERVICE = "baton.api.buffer.v1.BufferService"
    STUB = BufferServiceStub
    RETRIED = (
        "OpenEpisode", "CloseEpisode", "Lease", "RenewLease", "ReleaseLease", "Ack", "GetEpisode", "DeleteEpisode",
        "DeleteRun",
    )  # fmt: skip

    def __init__(self, address: str, *, timeout_s: float = 60.0) -> None:
        """See ServiceClient."""
        super().__init__(address, timeout_s=timeout_s)
        self.lessee = f"client-{uuid.uuid4().hex}"
        """Who leases with this client, unless another name is given."""
        self._stub.Put = self._channel.stream_unary(
            f"/{self.SERVICE}/Put", request_serializer=None, response_deserializer=pb.PutResponse.FromString
        )
        self._stub.Lease = self._channel.unary_stream(
            f"/{self.SERVICE}/Lease",
            request_serializer=pb.LeaseRequest.SerializeToString,
            response_deserializer=BulkMessage.lease_response,
        )

    async def open_episode(
        self, run_id: str, episode_id: int, *, expected_samples: int | None, global_batch_size: int, micro_batch_size: int,
        relayed: bool = False, passes: int = 0, samples_per_unit: int = 1,
    ) -> int:  # fmt: skip
        """Declares an episode: fixed if `expected_samples` is given, else dynamic. Returns how many samples it holds.

        A relayed one becomes part of the history, and trains what `RelayClient.select` chooses. The episode does not end
        before `passes` passes are trained, if that is given. Every `samples_per_unit` consecutive samples, as the two of a
        pair, stay together in later passes and in micro-batches.
        """
        kind = pb.EPISODE_KIND_DYNAMIC if expected_samples is None else pb.EPISODE_KIND_FIXED
        request = pb.OpenEpisodeRequest(
            run_id=run_id, episode_id=episode_id, kind=kind, expected_samples=expected_samples or 0,
            global_batch_size=global_batch_size, micro_batch_size=micro_batch_size, relayed=relayed,
            passes=passes, samples_per_unit=samples_per_unit,
        )  # fmt: skip
        return (await self._call("OpenEpisode", request)).stored_samples

    async def put(
        self, run_id: str, episode_id: int, samples: Samples, *, request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> int:  # fmt: skip
        """Appends samples, whole groups at a time. Returns how many the episode holds now.

        With a `request_id` of the caller's own, the same put sent again stores nothing twice. Waits, within `timeout_s` for
        each of its parts, while the run has as much in the store as it may.
        """
        stem, stored = request_id or uuid.uuid4().hex, 0
        for part, piece in enumerate(_whole_groups(samples)):
            head = pb.PutRequest(run_id=run_id, episode_id=episode_id, request_id=f"{stem}/{part}")
            answer = await self._upload("Put", partial(_put_requests, piece, head), timeout_s)
            stored = answer.stored_samples
        return stored

    async def close_episode(self, run_id: str, episode_id: int) -> tuple[int, int]:
        """Ends the episode's rollout. Returns (stored samples, optimizer steps per pass unless it is relayed)."""
        answer = await self._call("CloseEpisode", pb.CloseEpisodeRequest(run_id=run_id, episode_id=episode_id))
        return answer.total_samples, answer.steps_per_pass

    async def lease(
        self, run_id: str, episode_id: int, *, pass_index: int, step_index: int, data_parallel_rank: int = 0,
        data_parallel_size: int = 1, shuffle_seed: int = 0, wait_s: float = 60.0, lessee: str | None = None,
        micro_batch_tokens: int = 0,
    ) -> AsyncIterator[MicroBatch]:  # fmt: skip
        """Yields this rank's micro-batches of one step, as they become available.

        `lessee` names who trains: on all ranks the same, and another after a restart; by default this client, alone.
        `micro_batch_tokens`, if not 0, cuts micro-batches by their tokens instead of their number of samples.
        """
        request = pb.LeaseRequest(
            run_id=run_id, episode_id=episode_id, pass_index=pass_index, step_index=step_index,
            data_parallel_rank=data_parallel_rank, data_parallel_size=data_parallel_size,
            shuffle_seed=shuffle_seed, wait_s=wait_s, lessee=self._name(lessee), micro_batch_tokens=micro_batch_tokens,
        )  # fmt: skip
        parts: list[MicroBatch] = []
        async for message in self._stream("Lease", request, wait_s + self.timeout_s):
            wrapped = np.frombuffer(message.head.wrapped, np.uint8).astype(bool)
            parts.append(MicroBatch(message.head.lease_id, message.samples(), wrapped))
            if not message.head.more:
                yield parts[0] if len(parts) == 1 else _joined(parts)
                parts = []

    def _name(self, lessee: str | None) -> str:
        return self.lessee if lessee is None else lessee

    async def renew_lease(
        self, run_id: str, episode_id: int, lease_id: str, *, lessee: str | None = None
    ) -> tuple[str, float]:  # fmt: skip
        """Starts the lease's time again, for the lessee that has it. Returns (lease id, seconds that it holds).

        Raises LeaseLostError if somebody else has leased the step since.
        """
        request = pb.RenewLeaseRequest(
            run_id=run_id, episode_id=episode_id, lease_id=lease_id, lessee=self._name(lessee)
        )  # fmt: skip
        answer = await self._call("RenewLease", request)
        return answer.lease_id, answer.timeout_s

    async def release_lease(self, run_id: str, episode_id: int, lease_id: str, *, reason: str) -> None:
        """Gives the step back untrained."""
        request = pb.ReleaseLeaseRequest(run_id=run_id, episode_id=episode_id, lease_id=lease_id, reason=reason)
        await self._call("ReleaseLease", request)

    async def ack(self, run_id: str, episode_id: int, lease_id: str, *, global_step: int) -> int:
        """Marks the leased step as trained. Returns the trained steps of its pass."""
        request = pb.AckRequest(run_id=run_id, episode_id=episode_id, lease_id=lease_id, global_step=global_step)
        return (await self._call("Ack", request)).acked_steps

    async def get_episode(self, run_id: str, episode_id: int) -> EpisodeCounts:
        """Counts an episode's samples by state."""
        answer = await self._call("GetEpisode", pb.GetEpisodeRequest(run_id=run_id, episode_id=episode_id))
        return EpisodeCounts(
            answer.stored_samples, answer.leased_samples, answer.trained_samples, answer.closed, list(answer.group_ids)
        )

    async def delete_episode(self, run_id: str, episode_id: int) -> int:
        """Ends a wholly trained episode. Returns its samples: they are removed, or history if it was relayed."""
        request = pb.DeleteEpisodeRequest(run_id=run_id, episode_id=episode_id)
        return (await self._call("DeleteEpisode", request)).deleted_samples

    async def delete_run(self, run_id: str, *, timeout_s: float | None = None) -> int:
        """Removes all that the store has of the run, whatever became of it. Returns how many episodes that were."""
        return (await self._call("DeleteRun", pb.DeleteRunRequest(run_id=run_id), timeout_s)).deleted_episodes


def _put_requests(samples: Samples, head: pb.PutRequest) -> Iterator[bytes]:
    for part in samples.split(CHUNK_BYTES):
        yield bulk.serialized(head, Encoded.of(part))


def _whole_groups(samples: Samples) -> Iterator[Samples]:
    """Consecutive parts of about REQUEST_BYTES that do not divide a group."""
    if not len(samples):
        return
    firsts, ends = _checked_groups(samples)
    start = held = 0
    for before, first, end in zip(ends, firsts[1:], ends[1:], strict=False):
        if end - held > REQUEST_BYTES:
            yield samples.take(np.arange(start, first))
            start, held = first, before
    yield samples.take(np.arange(start, len(samples)))


def _checked_groups(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """First sample of each run of samples of one group, and the bytes up to its end: [groups] each.

    Raises InvalidRequestError for what could not be stored, before anything is sent.
    """
    sizes, ids = samples.wire_bytes(), samples.group_ids or samples.sample_ids
    firsts = np.flatnonzero([True, *(one != other for one, other in pairwise(ids))])
    groups = np.add.reduceat(sizes, firsts)
    for what, names, parts, most in (
        ("sample", samples.sample_ids, sizes, SAMPLE_BYTES),
        ("group", [ids[first] for first in firsts], groups, GROUP_BYTES),
        ("put of", ["all samples"], sizes.sum(keepdims=True), PUT_BYTES),
    ):
        if parts.max() > most:
            at = int(np.argmax(parts))
            raise InvalidRequestError(
                f"{what} {names[at]} takes {int(parts[at])} bytes, more than the {most} that one may have; "
                "lower models.policy.seq_length, or put fewer samples at a time"
            )
    return firsts, np.cumsum(groups)


def _joined(parts: list[MicroBatch]) -> MicroBatch:
    samples, wrapped = Samples.concat([part.samples for part in parts]), np.concatenate([part.wrapped for part in parts])
    return replace(parts[0], samples=samples, wrapped=wrapped)
