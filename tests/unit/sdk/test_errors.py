"""Errors over a real grpc.aio server: the class that a service raises is the class that its client raises."""

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from baton import errors
from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.api.rollout.v1.rollout_pb2_grpc import RolloutServiceServicer, add_RolloutServiceServicer_to_server
from baton.clients import RolloutClient
from baton.errors import BatonError, to_status
from processes import free_port
from services.common.interceptors import ErrorInterceptor

CLASSES = [
    kind
    for kind in vars(errors).values()
    if inspect.isclass(kind) and issubclass(kind, BatonError) and kind is not BatonError
]


class Raising(RolloutServiceServicer):
    """Raises `error` in every call, and counts the calls."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls = 0

    async def GetStatus(self, request: pb.GetStatusRequest, context: grpc.aio.ServicerContext) -> pb.GetStatusResponse:
        self.calls += 1
        raise self.error

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GenerateResponse]:
        yield pb.GenerateResponse()
        raise self.error

    async def UpdateWeights(
        self, request: pb.UpdateWeightsRequest, context: grpc.aio.ServicerContext
    ) -> pb.UpdateWeightsResponse:
        self.calls += 1
        await asyncio.sleep(30)

    async def CommitWeights(
        self, request: pb.CommitWeightsRequest, context: grpc.aio.ServicerContext
    ) -> pb.CommitWeightsResponse:
        return pb.CommitWeightsResponse()


@asynccontextmanager
async def served(servicer: Raising) -> AsyncIterator[tuple[RolloutClient, grpc.aio.Server]]:
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    add_RolloutServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with RolloutClient(f"127.0.0.1:{port}", timeout_s=20) as client:
            yield client, server
    finally:
        await server.stop(None)


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind is not errors.ServiceUnavailableError])
async def test_a_call_raises_the_class_and_message_that_the_service_raised(kind: type[BatonError]) -> None:
    servicer = Raising(kind("what happened; what to do \u00e9"))
    async with served(servicer) as (client, _):
        with pytest.raises(BatonError) as caught:
            await client.get_status()
    assert (type(caught.value), str(caught.value)) == (kind, "what happened; what to do \u00e9")
    assert servicer.calls == 1


@pytest.mark.parametrize("kind", CLASSES)
async def test_a_stream_raises_the_class_and_message_that_the_service_raised(kind: type[BatonError]) -> None:
    received = 0
    async with served(Raising(kind("what happened"))) as (client, _):
        with pytest.raises(BatonError) as caught:
            async for _ in client.generate([]):
                received += 1
    assert (type(caught.value), str(caught.value), received) == (kind, "what happened", 1)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_has_a_status_of_its_own_meaning(kind: type[BatonError]) -> None:
    status, message, name = to_status(kind("x"))
    assert (message, name) == ("x", kind.__name__)
    assert status not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN)


def test_a_subclass_without_a_row_is_sent_as_its_category() -> None:
    class NarrowError(errors.NotFoundError):
        pass

    assert to_status(NarrowError("x")) == (grpc.StatusCode.NOT_FOUND, "x", "NotFoundError")


async def test_an_unexpected_exception_is_a_service_fault_and_is_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served(Raising(ZeroDivisionError("division by zero"))) as (client, _):
        with (
            caplog.at_level(logging.ERROR),
            pytest.raises(errors.ServiceFaultError, match="ZeroDivisionError: division by zero"),
        ):
            await client.get_status()
    assert "RolloutService/GetStatus failed" in caplog.text
    assert "Traceback" in caplog.text


async def test_an_expected_error_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with served(Raising(errors.NotFoundError("no such run"))) as (client, _):
        with caplog.at_level(logging.DEBUG, logger="services"), pytest.raises(errors.NotFoundError):
            await client.get_status()
    assert caplog.text == ""


@pytest.mark.parametrize("character", ["x", "\u00e9", "\U0001f600", "\n"], ids=ascii)
async def test_a_very_long_message_is_cut_for_the_wire_and_logged_whole(
    character: str, caplog: pytest.LogCaptureFixture
) -> None:
    message = "the beginning " + character * 50_000 + " the end"
    async with served(Raising(errors.NotFoundError(message))) as (client, _):
        with (
            caplog.at_level(logging.ERROR),
            pytest.raises(errors.NotFoundError, match=r"(?s)^the beginning .* cut here; the service's log"),
        ):
            await client.get_status()
    assert message in caplog.text


async def test_an_unavailable_service_is_asked_again_up_to_five_times() -> None:
    servicer = Raising(errors.ServiceUnavailableError("restarting"))
    async with served(servicer) as (client, _):
        with pytest.raises(errors.ServiceUnavailableError, match="restarting"):
            await client.get_status()
    assert servicer.calls == 5


async def test_a_lost_store_is_reported_at_once_because_the_service_has_waited_for_it_already() -> None:
    servicer = Raising(errors.StoreUnavailableError("no store at redis://127.0.0.1:1"))
    async with served(servicer) as (client, _):
        with pytest.raises(errors.StoreUnavailableError, match="no store at"):
            await client.get_status()
    assert servicer.calls == 1


async def test_a_deadline_names_the_call_its_address_and_the_seconds() -> None:
    async with served(Raising()) as (client, _):
        with pytest.raises(errors.DeadlineError) as caught:
            await client._call("UpdateWeights", pb.UpdateWeightsRequest(), 0.2)
        assert f"RolloutService.UpdateWeights at {client.address} did not answer within 0.2 s" in str(caught.value)


async def test_a_service_that_is_not_there_is_a_deadline_that_names_its_address() -> None:
    address = f"127.0.0.1:{free_port()}"
    async with RolloutClient(address, timeout_s=0.3) as client:
        with pytest.raises(
            errors.DeadlineError, match=rf"RolloutService\.GetStatus at {address} did not answer within 0\.3 s"
        ):
            await client.get_status()


async def test_a_service_that_goes_away_during_a_call_is_named_with_its_address() -> None:
    servicer = Raising()
    async with served(servicer) as (client, server):
        call = asyncio.create_task(client._call("UpdateWeights", pb.UpdateWeightsRequest(), 20))
        while not servicer.calls:
            await asyncio.sleep(0.01)
        await server.stop(None)
        with pytest.raises(
            errors.ServiceUnavailableError, match=rf"RolloutService\.UpdateWeights: no service at {client.address}"
        ):
            await call


async def test_a_message_over_grpcs_limit_is_an_invalid_request_not_backpressure() -> None:
    async with served(Raising()) as (client, _):
        with pytest.raises(errors.InvalidRequestError, match="larger than max"):
            await client.commit_weights(1, "x" * 5_000_000)


async def test_a_call_that_the_service_does_not_have_is_a_fault_that_names_it() -> None:
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with RolloutClient(f"127.0.0.1:{port}", timeout_s=20) as client:
            with pytest.raises(errors.ServiceFaultError, match=r"RolloutService\.GetStatus at .*UNIMPLEMENTED"):
                await client.get_status()
    finally:
        await server.stop(None)
