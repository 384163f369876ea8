"""Concurrent streams: order of completion or a given one, errors, and no task left behind."""

import asyncio
from contextlib import aclosing

import pytest

from services.coordinator.streams import in_order, map_as_completed, map_in_order, merge


async def ticks(name, *delays):
    for delay in delays:
        await asyncio.sleep(delay)
        yield name


async def test_merge_yields_from_all_streams_as_things_happen():
    merged = [name async for name in merge([ticks("slow", 0.15), ticks("fast", 0.01, 0.01), ticks("never")])]
    assert merged == ["fast", "fast", "slow"]


async def test_map_yields_each_result_when_it_is_done():
    async def delays():
        for delay in (0.2, 0.01, 0.1):
            yield delay

    async def wait(delay):
        await asyncio.sleep(delay)
        return delay

    assert [done async for done in map_as_completed(wait, delays())] == [0.01, 0.1, 0.2]


async def test_map_in_order_works_on_all_and_yields_each_after_those_before_it():
    async def delays():
        for delay in (0.1, 0.2, 0.01):
            yield delay

    done = []

    async def wait(delay):
        await asyncio.sleep(delay)
        done.append(delay)
        return delay

    assert [delay async for delay in map_in_order(wait, delays())] == [0.1, 0.2, 0.01]
    assert done == [0.01, 0.1, 0.2]


async def test_the_first_error_is_raised_as_itself_and_cancels_the_rest():
    cancelled = []

    async def fail():
        yield 1
        raise LookupError("gone")

    async def endless():
        try:
            await asyncio.sleep(60)
            yield 2
        finally:
            cancelled.append(True)

    with pytest.raises(LookupError, match="gone"):
        async for _ in merge([endless(), fail()]):
            pass
    assert cancelled == [True]


@pytest.mark.parametrize("made", [lambda stream: stream, lambda stream: in_order(stream, str, "ab")])
async def test_leaving_a_stream_cancels_what_it_still_does(made):
    before = asyncio.all_tasks()
    async with aclosing(made(merge([ticks("a", 0.01), ticks("b", 60)]))) as stream:
        async for _ in stream:
            break
    assert asyncio.all_tasks() == before


async def one_by_one(items, came):
    for item in items:
        came.append(item)
        yield item


async def test_items_are_put_in_order_and_none_waits_for_more_than_those_before_it():
    came = []
    told = [(item, len(came)) async for item in in_order(one_by_one("CABED", came), str.lower, "abcde")]
    assert told == [("A", 2), ("B", 3), ("C", 3), ("D", 5), ("E", 5)]


@pytest.mark.parametrize(("items", "ordered"), [("cb", "bc"), ("dca", "acd"), ("", "")])
async def test_what_never_comes_holds_nothing_back_for_good(items, ordered):
    assert "".join([item async for item in in_order(one_by_one(items, []), str, "abcd")]) == ordered


async def test_an_error_of_the_ordered_stream_is_raised_as_itself():
    async def fail():
        yield "a"
        raise LookupError("gone")

    ordered = in_order(fail(), str, "ba")
    with pytest.raises(LookupError, match="gone"):
        await anext(ordered)
