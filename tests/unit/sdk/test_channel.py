"""What all clients' calls have in common: connections, waits and sizes, over the server kit."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.api.rollout.v1.rollout_pb2_grpc import RolloutServiceServicer, add_RolloutServiceServicer_to_server
from baton.clients import RolloutClient
from baton.clients.rollout import Prompt, SamplingParams
from baton.errors import BackpressureError, DeadlineError
from baton.ragged import Ragged
from baton.samples import GROUP_BYTES, Samples
from services.common.server import Server


@asynccontextmanager
async def serving(servicer: RolloutServiceServicer) -> AsyncIterator[str]:
    """The address of a server that has it."""
    server = Server(["baton.api.rollout.v1.RolloutService"], "127.0.0.1:0", request_bytes=GROUP_BYTES)
    add_RolloutServiceServicer_to_server(servicer, server.grpc)
    await server.grpc.start()
    try:
        yield server.address
    finally:
        await server.grpc.stop(None)


class Listening(RolloutServiceServicer):
    """Keeps the other end of each call's connection."""

    def __init__(self) -> None:
        self.peers: list[str] = []

    async def GetStatus(self, request: pb.GetStatusRequest, context: grpc.aio.ServicerContext) -> pb.GetStatusResponse:
        self.peers.append(context.peer())
        return pb.GetStatusResponse()


async def test_clients_of_one_process_have_a_connection_each_so_that_bulk_streams_do_not_share_one() -> None:
    servicer = Listening()
    async with serving(servicer) as address, RolloutClient(address) as one, RolloutClient(address) as other:
        for client in (one, other, one):
            await client.get_status()
    first, second, again = servicer.peers
    assert first == again != second


class Refusing(RolloutServiceServicer):
    """Has a full queue for so many calls; then it is silent."""

    def __init__(self, refusals: int) -> None:
        self.left = refusals

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateResponse]:
        self.left -= 1
        if self.left >= 0:
            raise BackpressureError("the queue is full")
        await asyncio.sleep(60)
        yield pb.GenerateResponse()


@pytest.mark.parametrize(("refusals", "error"), [(1, BackpressureError), (0, DeadlineError)])
async def test_a_call_that_runs_out_of_time_tells_what_it_waited_for(refusals: int, error: type[Exception]) -> None:
    async with serving(Refusing(refusals)) as address, RolloutClient(address) as client:
        with pytest.raises(error):
            async for _ in client.generate([Prompt("a", token_ids=[5])], sampling=SamplingParams(), timeout_s=1):
                pass


class Echoing(RolloutServiceServicer):
    """Answers with what it was asked."""

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateResponse]:
        samples = Samples(["a/0"], prompt_ids=Ragged.of([np.frombuffer(request.prompts[0].token_ids, "<i4")], np.int32))
        yield pb.GenerateResponse(samples=samples.to_proto(), texts=[""])


async def test_a_prompt_and_an_answer_of_many_megabytes_travel_whole() -> None:
    tokens = list(range(4 * 2**20))
    async with serving(Echoing()) as address, RolloutClient(address) as client:
        async for generation in client.generate([Prompt("a", token_ids=tokens)]):
            assert generation.samples.prompt_ids.values.tolist() == tokens
