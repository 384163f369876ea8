"""baton.local.health: a service answers, or it does not."""

import socket

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from baton.errors import ServiceUnavailableError
from baton.local.health import is_answering, is_serving, wait_serving
from baton.local.store import free_port


@pytest.fixture
async def server():
    """A gRPC server with a health service. Yields (address, health servicer)."""
    server, checks = grpc.aio.server(), health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield address, checks
    await server.stop(0)


async def test_a_service_is_serving_only_while_it_says_so(server):
    address, checks = server
    await checks.set("", health_pb2.HealthCheckResponse.SERVING)
    assert await is_serving(address)
    await wait_serving("trainer", address, 30)
    await checks.enter_graceful_shutdown()
    assert not await is_serving(address)


async def test_an_external_service_that_is_not_there_is_named_with_its_address():
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ServiceUnavailableError, match=rf"trainer: no healthy service at {address} within 0.1 s"):
        await wait_serving("trainer", address, 0.1)


async def test_a_port_that_accepts_but_never_answers_is_no_store():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        assert not await is_answering(f"redis://127.0.0.1:{mute.getsockname()[1]}", 0.2)
    assert not await is_answering(f"redis://127.0.0.1:{free_port()}", 0.2)
    assert not await is_answering("unix:///no/such/socket", 0.2)
