"""Whose turn it is at the trainer: steps, publications and checkpoints one after the other; some work gives way to them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """`async with turns` is a turn; who waits for one gets it in order."""

    def __init__(self, give_way_s: float) -> None:
        """`give_way_s`: how long a turn waits at most for what gives way."""
        self._lock = asyncio.Lock()
        self._give_way_s = give_way_s
        self._waiting = 0
        self._limit: asyncio.Timeout | None = None  # of what gives way, and has the trainer now

    async def __aenter__(self) -> None:
        if self._limit is not None:
            self._bound(self._limit)
        self._waiting += 1
        try:
            await self._lock.acquire()
        finally:
            self._waiting -= 1

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()

    @asynccontextmanager
    async def giving_way(self) -> AsyncIterator[None]:
        """A turn that may take as long as it likes while nobody waits for the next one. It is cancelled, and raises
        TimeoutError, once somebody has waited for `give_way_s`."""
        async with self._lock, asyncio.timeout(None) as limit:
            self._limit = limit
            if self._waiting:
                self._bound(limit)
            try:
                yield
            finally:
                self._limit = None

    def _bound(self, limit: asyncio.Timeout) -> None:
        if limit.when() is None:
            limit.reschedule(asyncio.get_running_loop().time() + self._give_way_s)
