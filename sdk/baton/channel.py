"""One way to open a channel and one way to call over it: deadlines always, retries where repeating is safe."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Self

import grpc

from baton.errors import BackpressureError, DeadlineError, ServiceUnavailableError, from_rpc_error
from baton.samples import GROUP_BYTES

_RETRY = {  # gRPC allows five attempts; with a ready-wait in between they span a restart of the service
    "maxAttempts": 5,
    "initialBackoff": "0.2s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
_KEEPALIVE = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),  # also in a long silent call
    ("grpc.initial_reconnect_backoff_ms", 100),  # a service that restarts is back within a second
    ("grpc.max_reconnect_backoff_ms", 2_000),
]
_LARGE_ANSWERS = ("grpc.max_receive_message_length", GROUP_BYTES)
_OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)
"""Clients of one process share none: two that stream samples at once would share its windows and its order."""


class ServiceClient:
    """Base of the typed clients: an async channel to one service.

    Idempotent calls (named in `RETRIED`) are sent again when the service is UNAVAILABLE, up to five times; every call
    waits for the service to be reachable, within its deadline.
    """

    SERVICE: str
    STUB: Callable[[grpc.aio.Channel], Any]
    RETRIED: tuple[str, ...] = ()

    def __init__(self, address: str, *, timeout_s: float = 60.0) -> None:
        """`address` is host:port, or a socket of this machine (unix:path, unix-abstract:name); `timeout_s` is the deadline
        of calls that are given none of their own."""
        self.address = address
        self.timeout_s = timeout_s
        methods = [{"service": self.SERVICE, "method": name} for name in self.RETRIED]
        config = {"methodConfig": [{"name": methods, "retryPolicy": _RETRY}]} if methods else {}
        own = [("grpc.service_config", json.dumps(config)), ("grpc.enable_retries", 1)]
        options = [*_KEEPALIVE, _LARGE_ANSWERS, _OWN_CONNECTION, *own]
        self._channel = grpc.aio.insecure_channel(address, options=options)
        self._stub = type(self).STUB(self._channel)

    async def close(self) -> None:
        """Ends the channel; calls in flight are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _name(self, method: str) -> str:
        return f"{self.SERVICE.rsplit('.', 1)[-1]}.{method}"

    async def _call(self, method: str, request: Any, timeout_s: float | None = None) -> Any:
        timeout = self.timeout_s if timeout_s is None else timeout_s
        try:
            return await getattr(self._stub, method)(request, timeout=timeout, wait_for_ready=True)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._name(method), self.address, timeout) from None

    async def _upload(self, method: str, messages: Callable[[], Iterable[Any]], timeout_s: float | None = None) -> Any:
        """Streams the messages; from the first one again while the service is away or its budgets are full."""
        timeout, pause = self.timeout_s if timeout_s is None else timeout_s, 0.05
        deadline, earlier = time.monotonic() + timeout, None
        while True:
            try:
                left = max(deadline - time.monotonic(), 0.0)
                return await getattr(self._stub, method)(iter(messages()), timeout=left, wait_for_ready=True)
            except grpc.RpcError as error:
                raised = from_rpc_error(error, self._name(method), self.address, timeout)
                if isinstance(raised, DeadlineError) and earlier:
                    raised = earlier  # it says what the time went by with
                waits = isinstance(raised, ServiceUnavailableError | BackpressureError) or _cut_off(error)
                if not waits or time.monotonic() + pause > deadline:
                    raise raised from None
                earlier = raised
            await asyncio.sleep(pause)
            pause = min(2 * pause, 2.0)

    async def _stream_once_there_is_room(self, method: str, request: Any, timeout_s: float) -> AsyncIterator[Any]:
        """As `_stream`; asks again while the service's budget is full, which it says before its first answer."""
        deadline, longest, answered, earlier = time.monotonic() + timeout_s, 0.1, False, None
        while True:
            try:
                async for response in self._stream(method, request, max(deadline - time.monotonic(), 0.0)):
                    answered = True
                    yield response
                return
            except BackpressureError as error:
                if answered or time.monotonic() + longest > deadline:
                    raise
                earlier = error
            except DeadlineError:
                if earlier and not answered:
                    raise earlier from None  # it says what the time went by with
                raise
            await asyncio.sleep(random.uniform(0, longest))  # not all of them at once
            longest = min(2 * longest, 2.0)

    async def _stream(self, method: str, request: Any | Iterable[Any], timeout_s: float | None = None) -> AsyncIterator[Any]:
        timeout = self.timeout_s if timeout_s is None else timeout_s
        call = getattr(self._stub, method)(request, timeout=timeout, wait_for_ready=True)
        try:
            async for response in call:
                yield response
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._name(method), self.address, timeout) from None
        finally:
            call.cancel()  # a caller that leaves its loop early ends the call; on a finished one it does nothing


def _cut_off(error: grpc.RpcError) -> bool:
    """Whether the service ended the call while we were sending, and gRPC lost what it answered: asked again, it tells."""
    return error.code() == grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core"
