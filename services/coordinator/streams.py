"""Async streams: concurrent ones that yield in order of completion, and that order undone; leaving one cancels what it
still does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_END = object()


def merge(streams: Iterable[AsyncIterator[T]]) -> AsyncIterator[T]:
    """Yields from all streams at once. The first error ends all of them and is raised as itself."""

    async def drain(stream: AsyncIterator[T], put: Callable[[T], None]) -> None:
        async for item in stream:
            put(item)

    async def work(tasks: asyncio.TaskGroup, put: Callable[[T], None]) -> None:
        for stream in streams:
            tasks.create_task(drain(stream, put))

    return _collect(work)


def map_as_completed(function: Callable[[T], Awaitable[R]], stream: AsyncIterator[T]) -> AsyncIterator[R]:
    """Yields function(item) for all items, each when it is done. Errors as in `merge`."""

    async def apply(item: T, put: Callable[[R], None]) -> None:
        put(await function(item))

    async def work(tasks: asyncio.TaskGroup, put: Callable[[R], None]) -> None:
        async for item in stream:
            tasks.create_task(apply(item, put))

    return _collect(work)


async def map_in_order(function: Callable[[T], Awaitable[R]], stream: AsyncIterator[T]) -> AsyncIterator[R]:
    """Yields function(item) for all items, in their order, while later ones are worked on. Errors as in `merge`."""

    async def numbered() -> AsyncIterator[tuple[int, T]]:
        number = 0
        async for item in stream:
            yield number, item
            number += 1

    async def apply(item: tuple[int, T]) -> tuple[int, R]:
        return item[0], await function(item[1])

    early: dict[int, R] = {}
    due = 0
    async with aclosing(map_as_completed(apply, numbered())) as done:
        async for number, result in done:
            early[number] = result
            while due in early:
                yield early.pop(due)
                due += 1


async def in_order(
    stream: AsyncIterator[T], key: Callable[[T], Hashable], order: Iterable[Hashable]
) -> AsyncIterator[T]:  # fmt: skip
    """Yields the items in the order of their keys, each as soon as all before it have come. A key comes at most once.

    What never comes holds others back until the stream ends.
    """
    places = {known: place for place, known in enumerate(order)}
    early: dict[int, T] = {}
    due = 0
    async with aclosing(stream):
        async for item in stream:
            early[places[key(item)]] = item
            while due in early:
                yield early.pop(due)
                due += 1
    for place in sorted(early):
        yield early[place]


async def _collect(work: Callable[[asyncio.TaskGroup, Callable[[T], None]], Awaitable[None]]) -> AsyncIterator[T]:
    """Yields what `work` and the tasks that it starts put."""
    queue: asyncio.Queue[object] = asyncio.Queue()

    async def run() -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                await work(tasks, queue.put_nowait)
        finally:
            queue.put_nowait(_END)

    running = asyncio.create_task(run())
    try:
        while (item := await queue.get()) is not _END:
            yield item
        try:
            await running
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
    finally:
        running.cancel()
        await asyncio.wait([running])
