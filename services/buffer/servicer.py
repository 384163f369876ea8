"""The gRPC face of the buffer: decode, one call, encode."""

from collections.abc import AsyncIterator

import grpc
import numpy as np

from baton.api.buffer.v1 import buffer_pb2 as pb
from baton.api.buffer.v1.buffer_pb2_grpc import BufferServiceServicer
from baton.errors import InvalidRequestError
from services.buffer.batching import Share
from services.buffer.keys import EpisodeKeys
from services.buffer.leases import Leases, MicroBatch
from services.buffer.ledger import Ledger
from services.buffer.state import RunState

GRPC_BYTES = 4 * 2**20
"""gRPC's default limit of one message."""


class BufferServicer(BufferServiceServicer):
    """Implements BufferService; the errors are those of the domain calls."""

    def __init__(self, ledger: Ledger, leases: Leases, state: RunState) -> None:
        self._ledger = ledger
        self._leases = leases
        self._state = state

    async def OpenEpisode(self, request: pb.OpenEpisodeRequest, context: grpc.aio.ServicerContext) -> pb.OpenEpisodeResponse:
        stored = await self._ledger.open(
            EpisodeKeys(request.run_id, request.episode_id),
            _expected(request),
            request.global_batch_size,
            request.micro_batch_size,
        )
        return pb.OpenEpisodeResponse(stored_samples=stored)

    async def Put(self, request: pb.PutRequest, context: grpc.aio.ServicerContext) -> pb.PutResponse:
        keys = EpisodeKeys(request.run_id, request.episode_id)
        first, stored = await self._ledger.put(keys, request.request_id, request.samples)
        return pb.PutResponse(first_position=first, stored_samples=stored)

    async def CloseEpisode(
        self, request: pb.CloseEpisodeRequest, context: grpc.aio.ServicerContext
    ) -> pb.CloseEpisodeResponse:
        total, steps = await self._ledger.close(EpisodeKeys(request.run_id, request.episode_id))
        return pb.CloseEpisodeResponse(total_samples=total, steps_per_pass=steps)

    async def Lease(self, request: pb.LeaseRequest, context: grpc.aio.ServicerContext) -> AsyncIterator[pb.LeaseResponse]:
        share = Share(
            request.pass_index,
            request.step_index,
            request.data_parallel_rank,
            request.data_parallel_size,
            request.shuffle_seed,
        )
        keys = EpisodeKeys(request.run_id, request.episode_id)
        async for micro_batch in self._leases.lease(keys, share, request.wait_s):
            yield _message(share.lease_id, micro_batch)

    async def Ack(self, request: pb.AckRequest, context: grpc.aio.ServicerContext) -> pb.AckResponse:
        keys = EpisodeKeys(request.run_id, request.episode_id)
        return pb.AckResponse(acked_steps=await self._leases.ack(keys, request.lease_id, request.global_step))

    async def GetEpisode(self, request: pb.GetEpisodeRequest, context: grpc.aio.ServicerContext) -> pb.GetEpisodeResponse:
        counts = await self._ledger.counts(EpisodeKeys(request.run_id, request.episode_id))
        return pb.GetEpisodeResponse(
            stored_samples=counts.stored,
            leased_samples=counts.leased,
            trained_samples=counts.trained,
            closed=counts.closed,
            group_ids=counts.group_ids,
        )

    async def DeleteEpisode(
        self, request: pb.DeleteEpisodeRequest, context: grpc.aio.ServicerContext
    ) -> pb.DeleteEpisodeResponse:
        deleted = await self._ledger.delete(EpisodeKeys(request.run_id, request.episode_id))
        return pb.DeleteEpisodeResponse(deleted_samples=deleted)

    async def PutState(self, request: pb.PutStateRequest, context: grpc.aio.ServicerContext) -> pb.PutStateResponse:
        revision = await self._state.put(request.run_id, request.name, request.value, request.expected_revision)
        return pb.PutStateResponse(revision=revision)

    async def GetState(self, request: pb.GetStateRequest, context: grpc.aio.ServicerContext) -> pb.GetStateResponse:
        value, revision = await self._state.get(request.run_id, request.name)
        return pb.GetStateResponse(value=value, revision=revision)


def _expected(request: pb.OpenEpisodeRequest) -> int:
    """Samples of a fixed episode, 0 for a dynamic one. Raises InvalidRequestError if kind and number do not agree."""
    if request.kind == pb.EPISODE_KIND_UNSPECIFIED:
        raise InvalidRequestError("kind is not set; say EPISODE_KIND_FIXED or EPISODE_KIND_DYNAMIC")
    if (request.kind == pb.EPISODE_KIND_FIXED) != (request.expected_samples > 0):
        kind = pb.EpisodeKind.Name(request.kind)
        raise InvalidRequestError(
            f"expected_samples is {request.expected_samples} and kind {kind}; fixed ones have 1 or more, dynamic ones 0"
        )
    return request.expected_samples


def _message(lease_id: str, micro_batch: MicroBatch) -> pb.LeaseResponse:
    """Raises InvalidRequestError if the micro-batch is too large for one message."""
    message = pb.LeaseResponse(
        lease_id=lease_id, samples=micro_batch.samples.to_proto(), wrapped=micro_batch.wrapped.astype(np.uint8).tobytes()
    )
    if (size := message.ByteSize()) > GRPC_BYTES:
        raise InvalidRequestError(
            f"a micro-batch of {len(micro_batch.samples)} samples takes {size} bytes, and a message holds {GRPC_BYTES}; "
            "lower runtime.train_micro_batch_size"
        )
    return message
