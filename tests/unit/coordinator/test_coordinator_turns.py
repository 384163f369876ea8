"""Turns at the trainer: what gives way has it while nobody else wants it, and soon no longer once somebody does."""

import asyncio
import time

import pytest

from services.coordinator.turns import Turns

GIVE_WAY_S = 0.3
BUSY_S = 20.0
"""What a busy machine may add."""


async def long_work(turns: Turns, begun: asyncio.Event) -> None:
    async with turns.giving_way():
        begun.set()
        await asyncio.sleep(60)


async def test_what_gives_way_may_take_its_time_while_nobody_waits() -> None:
    turns = Turns(0.05)
    async with turns.giving_way():
        await asyncio.sleep(0.3)
    async with turns:
        pass


async def test_who_comes_meanwhile_waits_no_longer_than_agreed() -> None:
    turns, begun = Turns(GIVE_WAY_S), asyncio.Event()
    working = asyncio.create_task(long_work(turns, begun))
    await begun.wait()
    started = time.monotonic()
    async with turns:
        assert GIVE_WAY_S - 0.05 < time.monotonic() - started < GIVE_WAY_S + BUSY_S
        with pytest.raises(TimeoutError):
            await working


async def test_who_waited_before_it_began_waits_no_longer_either() -> None:
    turns, begun, order = Turns(GIVE_WAY_S), asyncio.Event(), []

    async def step() -> None:
        async with turns:
            order.append("step")

    async with turns:
        working = asyncio.create_task(long_work(turns, begun))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(step())
        await asyncio.sleep(0)
    started = time.monotonic()
    await waiting
    assert begun.is_set()
    assert time.monotonic() - started < GIVE_WAY_S + BUSY_S
    assert order == ["step"]
    with pytest.raises(TimeoutError):
        await working


async def test_turns_that_give_no_way_come_in_order_and_are_not_cut_short() -> None:
    turns, order = Turns(0.05), []

    async def step(name: str) -> None:
        async with turns:
            await asyncio.sleep(0.2)
            order.append(name)

    await asyncio.gather(step("a"), step("b"))
    assert order == ["a", "b"]


async def test_an_error_of_what_gives_way_is_its_own_and_ends_its_turn() -> None:
    turns = Turns(GIVE_WAY_S)
    with pytest.raises(ValueError, match="own"):
        async with turns.giving_way():
            raise ValueError("own")
    async with turns:
        pass
