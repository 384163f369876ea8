"""Concurrent streams: order of completion or a given one, errors, and no task left behind."""

import asyncio
from contextlib import aclosing

import pytest

from services.coordinator.streams import in_order, map_as_completed, map_in_order, merge


async def ticks(name, *delays):
    for delay in delays:
        await asyncio.sleep(delay)
        yield name


def in_turn(order):
    """What returns an item once it has done so for those before it in `order`."""
    done = {item: asyncio.Event() for item in order}

    async def wait(item):
        for before in order[: order.index(item)]:
            await done[before].wait()
        done[item].set()
        return item

    return wait


async def each(items):
    for item in items:
        await asyncio.sleep(0)
        yield item


async def test_merge_yields_from_all_streams_as_things_happen():
    wait = in_turn("abc")

    async def stream(items):
        for item in items:
            yield await wait(item)

    assert [item async for item in merge([stream("c"), stream("ab"), stream("")])] == ["a", "b", "c"]


async def test_map_yields_each_result_when_it_is_done():
    assert [item async for item in map_as_completed(in_turn("bca"), each("abc"))] == ["b", "c", "a"]


async def test_map_in_order_works_on_all_and_yields_each_after_those_before_it():
    wait, done = in_turn("cab"), []

    async def work(item):
        done.append(await wait(item))
        return item

    assert [item async for item in map_in_order(work, each("abc"))] == ["a", "b", "c"]
    assert done == ["c", "a", "b"]


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
