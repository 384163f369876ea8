"""How far an episode's rollout is, for who waits to train on it."""

import asyncio
from collections.abc import AsyncIterator


class Arrivals:
    """Samples of one episode as they are stored. Fixed episodes know their total from the start, others when they close."""

    def __init__(self, expected: int | None) -> None:
        self._total = expected
        self._stored = 0
        self._changed = asyncio.Event()

    def stored(self, samples: int) -> None:
        """So many are stored now."""
        self._stored = samples
        self._changed.set()

    def closed(self, total: int) -> None:
        """No more will come."""
        self._stored = self._total = total
        self._changed.set()

    async def steps(self, global_batch_size: int) -> AsyncIterator[int]:
        """Yields each step of the first pass as soon as all its samples are stored."""
        step = 0
        while self._total is None or step * global_batch_size < self._total:
            needed = (step + 1) * global_batch_size
            if self._stored >= (needed if self._total is None else min(needed, self._total)):
                yield step
                step += 1
            else:
                self._changed.clear()
                await self._changed.wait()
