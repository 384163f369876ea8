"""The sync face of the async clients, for scripts and notebooks."""

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
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


def _wait(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work`, done on the background loop; an interrupt (Ctrl-C) here cancels it there."""
    future = asyncio.run_coroutine_threadsafe(work, _background_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def _next(stream: AsyncIterator[Any]) -> Any:
    return await anext(stream, StopAsyncIteration)


def _iterate(stream: AsyncIterator[Any]) -> Iterator[Any]:
    while (item := _wait(_next(stream))) is not StopAsyncIteration:
        yield item


class Blocking:
    """A client whose methods block. Same names, same arguments; async iterators become iterators.

    Deadlines are the async client's own, so no call here waits for ever.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        async def build() -> Any:
            return make()

        self._client = _wait(build())

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if inspect.isasyncgenfunction(method):
            return lambda *args, **kwargs: _iterate(method(*args, **kwargs))
        if inspect.iscoroutinefunction(method):
            return lambda *args, **kwargs: _wait(method(*args, **kwargs))
        return method

    def __enter__(self) -> "Blocking":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def blocking(client: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`blocking(RolloutClient, "host:port")` is a RolloutClient whose methods need no `await`."""
    return Blocking(lambda: client(*args, **kwargs))
