"""The sync face of the async clients, for scripts and notebooks."""

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

_loop: asyncio.AbstractEventLoop | None = None
_lock = threading.Lock()


def _background_loop() -> asyncio.AbstractEventLoop:
    """The one event loop of all blocking clients, on a daemon thread of its own."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="baton-blocking", daemon=True).start()
        return _loop


async def _next(stream: AsyncIterator[Any]) -> Any:
    return await anext(stream, StopAsyncIteration)


def _iterate(stream: AsyncIterator[Any]) -> Iterator[Any]:
    loop = _background_loop()
    while (item := asyncio.run_coroutine_threadsafe(_next(stream), loop).result()) is not StopAsyncIteration:
        yield item


class Blocking:
    """A client whose methods block. Same names, same arguments; async iterators become iterators.

    Deadlines are the async client's own, so no call here waits for ever.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        async def build() -> Any:
            return make()

        self._client = asyncio.run_coroutine_threadsafe(build(), _background_loop()).result()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if inspect.isasyncgenfunction(method):
            return lambda *args, **kwargs: _iterate(method(*args, **kwargs))
        if inspect.iscoroutinefunction(method):
            return lambda *args, **kwargs: asyncio.run_coroutine_threadsafe(
                method(*args, **kwargs), _background_loop()
            ).result()
        return method

    def __enter__(self) -> "Blocking":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def blocking(client: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`blocking(RolloutClient, "host:port")` is a RolloutClient whose methods need no `await`."""
    return Blocking(lambda: client(*args, **kwargs))
