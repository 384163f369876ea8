"""A step that is trained is acknowledged, whatever became of earlier attempts to say so, and is never trained again.

The buffer is a stand-in here, for it to fail at the moments that matter.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import grpc
import pytest
from training import MICRO_BATCH, SIZE, trainer, training_samples, write_run_file

from baton.api.buffer.v1 import buffer_pb2 as pb
from baton.api.buffer.v1.buffer_pb2_grpc import BufferServiceServicer, add_BufferServiceServicer_to_server
from baton.clients import TrainerClient
from baton.errors import ERROR_KEY, BatonError, LeaseLostError
from models import make_model
from processes import TrainerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainerProcess]:
    directory = tmp_path_factory.mktemp("trainer")
    with trainer(write_run_file(directory, make_model(directory / "model", layers=2)), directory, data=2) as process:
        yield process


@pytest.fixture
async def client(process: TrainerProcess) -> AsyncIterator[TrainerClient]:
    async with TrainerClient(process.address, timeout_s=60) as client:
        yield client


class ForgetfulBuffer(BufferServiceServicer):
    """Leases the same samples to everybody, and fails the first acknowledgement."""

    def __init__(self) -> None:
        self.acknowledged: list[int] = []

    async def Lease(self, request: pb.LeaseRequest, context: grpc.aio.ServicerContext) -> AsyncIterator[pb.LeaseResponse]:
        share = SIZE // request.data_parallel_size
        for start in range(request.data_parallel_rank * share, (request.data_parallel_rank + 1) * share, MICRO_BATCH):
            part = training_samples().take(range(start, start + MICRO_BATCH))
            yield pb.LeaseResponse(lease_id="lease", samples=part.to_proto(), wrapped=bytes(MICRO_BATCH))

    async def Ack(self, request: pb.AckRequest, context: grpc.aio.ServicerContext) -> pb.AckResponse:
        self.acknowledged.append(request.global_step)
        if len(self.acknowledged) == 1:
            await context.abort(grpc.StatusCode.INTERNAL, "the store is gone")
        return pb.AckResponse(acked_steps=1)


class ExpiredBuffer(ForgetfulBuffer):
    """Its lease is over when the step is; it may be renewed, once, and the renewed one's first acknowledgement is lost."""

    async def RenewLease(self, request: pb.RenewLeaseRequest, context: grpc.aio.ServicerContext) -> pb.RenewLeaseResponse:
        if self.acknowledged:
            await self._lost(context, "trained by now")
        return pb.RenewLeaseResponse(lease_id="renewed", timeout_s=60)

    async def Ack(self, request: pb.AckRequest, context: grpc.aio.ServicerContext) -> pb.AckResponse:
        if request.lease_id != "renewed":
            await self._lost(context, "expired, or another attempt has it")
        return await super().Ack(request, context)

    async def _lost(self, context: grpc.aio.ServicerContext, why: str) -> None:
        context.set_trailing_metadata(((ERROR_KEY, LeaseLostError.__name__),))
        await context.abort(grpc.StatusCode.ABORTED, why)


@asynccontextmanager
async def served(servicer: ForgetfulBuffer) -> AsyncIterator[tuple[str, ForgetfulBuffer]]:
    server = grpc.aio.server()
    add_BufferServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", servicer
    finally:
        await server.stop(None)


@pytest.mark.parametrize("kind", [ForgetfulBuffer, ExpiredBuffer])
async def test_a_step_whose_acknowledgement_failed_is_not_taken_again_but_acknowledged_again(
    kind: type[ForgetfulBuffer], client: TrainerClient, run_id: str
) -> None:
    before = (await client.get_status()).global_step
    async with served(kind()) as (address, buffer):
        for _ in range(2):
            try:
                answer = await client.train_step(
                    run_id, 0, pass_index=0, step_index=0, buffer_address=address, timeout_s=60
                )
            except BatonError as error:
                assert "the store is gone" in str(error)
    assert answer.global_step == before + 1
    assert (await client.get_status()).global_step == before + 1
    assert buffer.acknowledged == [before + 1, before + 1]
