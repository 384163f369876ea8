"""The history that a relay function loads from, against a buffer that does not answer."""

import asyncio

import grpc
import pytest

from baton.api.buffer.v1.relay_pb2_grpc import RelayServiceServicer, add_RelayServiceServicer_to_server
from baton.clients import RelayClient
from baton.errors import DeadlineError
from baton.relay.history import RelayHistory


class Silent(RelayServiceServicer):
    """Takes requests, and answers none."""

    async def ReadSamples(self, request, context):
        await asyncio.sleep(60)
        yield


async def test_a_wait_for_what_is_touched_ends_with_the_error_of_the_call_that_got_no_answer():
    server = grpc.aio.server()
    add_RelayServiceServicer_to_server(Silent(), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        async with RelayClient(address, timeout_s=0.3) as client:
            history, told = RelayHistory(client, "run", 0.3), f"ReadSamples at {address} did not answer within 0.3 s"
            for _ in range(5):  # two limits that end together would be told by either
                with pytest.raises(DeadlineError, match=told):
                    await asyncio.to_thread(history.samples, 0, [0])
    finally:
        await server.stop(None)
