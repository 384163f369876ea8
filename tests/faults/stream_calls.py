"""How the producer and the lessee call the buffer: until it answers, and if the test asks for it, everything twice."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

from baton.clients import BufferClient, LedgerClient, RelayClient
from baton.errors import ConflictError, InvalidRequestError, NotFoundError, NotReadyError, ServiceUnavailableError

TOO_LATE = (ConflictError, InvalidRequestError, NotFoundError, NotReadyError)
"""Right answers to a call that comes once more when the stream is far beyond it."""


async def insist(call: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Any:
    """The call's answer, however often the buffer or its store dies during it."""
    while True:
        try:
            return await call(*arguments, **options)
        except ServiceUnavailableError:
            await asyncio.sleep(0.02)


class Twice:
    """Sends every call two times at once, and now and then one of the last hundreds once more. Mix in before a client."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._sent: list[Callable[[], Awaitable[Any]]] = []

    async def _call(self, *arguments: Any) -> Any:
        return await self._twice(partial(super()._call, *arguments))

    async def _upload(self, *arguments: Any) -> Any:
        return await self._twice(partial(super()._upload, *arguments))

    async def _stream(self, *arguments: Any) -> AsyncIterator[Any]:
        stream = super()._stream

        async def whole() -> list[Any]:
            return [message async for message in stream(*arguments)]

        for message in await self._twice(whole):
            yield message

    async def _twice(self, send: Callable[[], Awaitable[Any]]) -> Any:
        answers = await asyncio.gather(send(), send(), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        self._sent = [*self._sent[-300:], send]
        if random.random() < 0.15:
            late = (await asyncio.gather(random.choice(self._sent)(), return_exceptions=True))[0]
            if isinstance(late, BaseException) and not isinstance(late, (*TOO_LATE, ServiceUnavailableError)):
                raise late
        return answers[0]


class TwiceBufferClient(Twice, BufferClient): ...


class TwiceLedgerClient(Twice, LedgerClient): ...


class TwiceRelayClient(Twice, RelayClient): ...


def clients(address: str, twice: bool) -> tuple[BufferClient, LedgerClient, RelayClient]:
    kinds = (TwiceBufferClient, TwiceLedgerClient, TwiceRelayClient) if twice else (BufferClient, LedgerClient, RelayClient)
    return tuple(kind(address, timeout_s=30) for kind in kinds)
