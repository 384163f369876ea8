"""The gRPC face of the buffer's data path: decode, one call, encode."""

from collections.abc import AsyncIterator, Iterator

import grpc
import numpy as np

from baton import bulk
from baton.api.buffer.v1 import buffer_pb2 as pb
from baton.api.buffer.v1.buffer_pb2_grpc import BufferServiceServicer, add_BufferServiceServicer_to_server
from baton.bulk import BulkMessage
from baton.errors import InvalidRequestError
from services.buffer.batching import LeaseId, Share
from services.buffer.chunks import Chunk
from services.buffer.inspection import Inspection
from services.buffer.keys import EpisodeKeys, RunKeys
from services.buffer.leases import Leases, MicroBatch
from services.buffer.ledger import Ledger
from services.buffer.rollback import RollBack


def add_buffer_service(servicer: "BufferServicer", server: grpc.aio.Server) -> None:
    """Registers BufferService, with the messages of Put and Lease read and written by `baton.bulk`."""
    generated = _Handlers()
    add_BufferServiceServicer_to_server(servicer, generated)
    handlers = generated.by_method | {
        "Put": grpc.stream_unary_rpc_method_handler(servicer.Put, BulkMessage.put_request, pb.PutResponse.SerializeToString),
        "Lease": grpc.unary_stream_rpc_method_handler(servicer.Lease, pb.LeaseRequest.FromString),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(generated.service, handlers),))


class _Handlers:
    """Takes what the generated code would register with a server."""

    service: str
    by_method: dict[str, grpc.RpcMethodHandler]

    def add_registered_method_handlers(self, service: str, by_method: dict[str, grpc.RpcMethodHandler]) -> None:
        self.service, self.by_method = service, by_method

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """The same once more, in another form."""


class BufferServicer(BufferServiceServicer):
    """Implements BufferService; the errors are those of the domain calls."""

    def __init__(self, ledger: Ledger, leases: Leases, inspection: Inspection, rollback: RollBack) -> None:
        self._ledger = ledger
        self._leases = leases
        self._inspection = inspection
        self._rollback = rollback

    async def OpenEpisode(self, request: pb.OpenEpisodeRequest, context: grpc.aio.ServicerContext) -> pb.OpenEpisodeResponse:
        stored = await self._ledger.open(
            _keys(request),
            _expected(request),
            request.global_batch_size,
            request.micro_batch_size,
            request.relayed,
            request.passes,
            request.samples_per_unit or 1,
        )
        return pb.OpenEpisodeResponse(stored_samples=stored)

    async def Put(
        self, request_iterator: AsyncIterator[BulkMessage], context: grpc.aio.ServicerContext
    ) -> pb.PutResponse:  # fmt: skip
        head, incoming = None, None
        try:
            async for message in request_iterator:
                if head is None:
                    head = message.head
                    incoming = self._ledger.incoming(_keys(head))
                await incoming.add(Chunk.received(message.raw_samples))
        except InvalidRequestError:
            if incoming:
                await incoming.drop()
            raise
        if head is None:
            raise InvalidRequestError("the stream is empty; put at least one sample")
        first, stored = await self._ledger.put(_keys(head), head.request_id, incoming)
        return pb.PutResponse(first_position=first, stored_samples=stored)

    async def CloseEpisode(
        self, request: pb.CloseEpisodeRequest, context: grpc.aio.ServicerContext
    ) -> pb.CloseEpisodeResponse:
        total, steps = await self._ledger.close(_keys(request))
        return pb.CloseEpisodeResponse(total_samples=total, steps_per_pass=steps)

    async def Lease(self, request: pb.LeaseRequest, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        share = Share(
            request.pass_index,
            request.step_index,
            request.data_parallel_rank,
            request.data_parallel_size,
            request.shuffle_seed,
        )
        batches = self._leases.lease(
            _keys(request),
            share,
            lessee=request.lessee,
            micro_batch_tokens=request.micro_batch_tokens,
            wait_s=request.wait_s,
        )
        async for batch in batches:
            for message in _messages(batch):
                yield message

    async def RenewLease(self, request: pb.RenewLeaseRequest, context: grpc.aio.ServicerContext) -> pb.RenewLeaseResponse:
        lease_id, timeout_s = await self._leases.renew(_keys(request), LeaseId.parse(request.lease_id), request.lessee)
        return pb.RenewLeaseResponse(lease_id=str(lease_id), timeout_s=timeout_s)

    async def ReleaseLease(
        self, request: pb.ReleaseLeaseRequest, context: grpc.aio.ServicerContext
    ) -> pb.ReleaseLeaseResponse:
        await self._leases.release(_keys(request), LeaseId.parse(request.lease_id), request.reason)
        return pb.ReleaseLeaseResponse()

    async def Ack(self, request: pb.AckRequest, context: grpc.aio.ServicerContext) -> pb.AckResponse:
        acked = await self._leases.ack(_keys(request), LeaseId.parse(request.lease_id), request.global_step)
        return pb.AckResponse(acked_steps=acked)

    async def GetEpisode(self, request: pb.GetEpisodeRequest, context: grpc.aio.ServicerContext) -> pb.GetEpisodeResponse:
        state, group_ids = await self._inspection.episode(_keys(request))
        return pb.GetEpisodeResponse(
            stored_samples=state.episode.stored,
            leased_samples=state.samples("leased"),
            trained_samples=state.samples("trained") + state.samples("acked"),
            closed=state.episode.closed,
            group_ids=group_ids,
        )

    async def DeleteEpisode(
        self, request: pb.DeleteEpisodeRequest, context: grpc.aio.ServicerContext
    ) -> pb.DeleteEpisodeResponse:
        return pb.DeleteEpisodeResponse(deleted_samples=await self._ledger.end(_keys(request)))

    async def DeleteRun(self, request: pb.DeleteRunRequest, context: grpc.aio.ServicerContext) -> pb.DeleteRunResponse:
        return pb.DeleteRunResponse(deleted_episodes=await self._rollback.whole(RunKeys(request.run_id)))


def _keys(request: object) -> EpisodeKeys:
    return EpisodeKeys(request.run_id, request.episode_id)


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


def _messages(batch: MicroBatch) -> Iterator[bytes]:
    """The micro-batch as LeaseResponses, in as many as its size asks for."""
    wrapped, sent = batch.wrapped.astype(np.uint8), 0
    for samples in bulk.messages(batch.parts):
        first, sent = sent, sent + samples.count
        head = pb.LeaseResponse(
            lease_id=str(batch.lease_id), wrapped=wrapped[first:sent].tobytes(), more=sent < len(wrapped)
        )  # fmt: skip
        yield bulk.serialized(head, samples)
