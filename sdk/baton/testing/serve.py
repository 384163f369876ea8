"""A servicer on a real grpc.aio server, with errors mapped as the services map them."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc

from baton.api.rollout.v1.control_pb2_grpc import (
    RolloutControlServiceServicer,
    add_RolloutControlServiceServicer_to_server,
)
from baton.api.rollout.v1.rollout_pb2_grpc import RolloutServiceServicer, add_RolloutServiceServicer_to_server
from baton.api.trainer.v1.scoring_pb2_grpc import ScoringServiceServicer, add_ScoringServiceServicer_to_server
from baton.api.trainer.v1.trainer_pb2_grpc import TrainerServiceServicer, add_TrainerServiceServicer_to_server
from baton.errors import ERROR_KEY, BatonError, to_status

_REGISTER: dict[type, Callable[[Any, grpc.aio.Server], None]] = {
    RolloutServiceServicer: add_RolloutServiceServicer_to_server,
    RolloutControlServiceServicer: add_RolloutControlServiceServicer_to_server,
    TrainerServiceServicer: add_TrainerServiceServicer_to_server,
    ScoringServiceServicer: add_ScoringServiceServicer_to_server,
}


@dataclass(frozen=True, slots=True)
class Served:
    """A running fake."""

    address: str
    server: grpc.aio.Server

    async def kill(self) -> None:
        """Goes away at once, as after `kill -9`: calls in flight are cut, and the port is closed.

        May be called by a handler of the fake itself: that one is cut too, the stop is not.
        """
        await asyncio.shield(asyncio.create_task(self.server.stop(None)))


@asynccontextmanager
async def serve(
    servicer: RolloutServiceServicer | TrainerServiceServicer | ScoringServiceServicer, port: int = 0
) -> AsyncIterator[Served]:
    """Serves the fake on 127.0.0.1; port 0 takes a free one."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    for kind, register in _REGISTER.items():
        if isinstance(servicer, kind):
            register(_MappingErrors(servicer), server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield Served(f"127.0.0.1:{bound}", server)
    finally:
        await server.stop(None)


class _MappingErrors:
    """The servicer's methods, whose Baton errors become statuses."""

    def __init__(self, servicer: Any) -> None:
        self._servicer = servicer

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._servicer, name)

        async def unary(request: Any, context: grpc.aio.ServicerContext) -> Any:
            try:
                return await method(request, context)
            except BatonError as error:
                await _abort(context, error)

        async def stream(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            try:
                async for response in method(request, context):
                    yield response
            except BatonError as error:
                await _abort(context, error)

        return stream if inspect.isasyncgenfunction(method) else unary


async def _abort(context: grpc.aio.ServicerContext, error: BatonError) -> NoReturn:
    status, message, name = to_status(error)
    await context.abort(status, message, ((ERROR_KEY, name),))
    raise AssertionError("abort raises")
