"""`blocking(client)`: the same methods and errors without `await`, against a fake replica on a real server."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from baton.clients import RolloutClient, blocking
from baton.clients.rollout import Prompt, SamplingParams
from baton.errors import InvalidRequestError, StalePolicyError
from baton.testing import FakeRollout, serve

PROMPTS = [Prompt(f"g{i}", text=f"question {i}") for i in range(40)]
LONG_S = 90.0


@pytest.fixture
def fake() -> FakeRollout:
    return FakeRollout(respond=lambda prompt, index, version: f"{prompt}:{index}")


@pytest.fixture
def address(fake: FakeRollout) -> Iterator[str]:
    """Serves the fake from a loop on another thread, as if it were another process."""
    ready: Future[str] = Future()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def run() -> None:
        async with serve(fake) as served:
            ready.set_result(served.address)
            await stop.wait()

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(loop.run_until_complete, run())
        try:
            yield ready.result(timeout=60)
        finally:
            loop.call_soon_threadsafe(stop.set)
            ended.result(timeout=60)
            loop.close()


def test_a_call_returns_its_answer(address: str) -> None:
    with blocking(RolloutClient, address) as rollout:
        assert rollout.get_status().model == "fake"


def test_a_stream_is_an_iterator_with_the_same_items(address: str) -> None:
    with blocking(RolloutClient, address) as rollout:
        groups = list(rollout.generate(PROMPTS[:3], sampling=SamplingParams(n=2)))
    assert [group.texts for group in groups] == [[f"question {i}:0", f"question {i}:1"] for i in range(3)]


def test_errors_of_calls_and_streams_are_the_async_clients(address: str) -> None:
    with blocking(RolloutClient, address) as rollout:
        with pytest.raises(StalePolicyError, match="version 3"):
            next(rollout.generate(PROMPTS[:1], exact_version=3))
        with pytest.raises(InvalidRequestError, match="context"):
            list(rollout.generate([Prompt("long", text="x" * 5000)]))


def test_several_threads_share_one_client(address: str) -> None:
    with blocking(RolloutClient, address) as rollout, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda prompt: next(rollout.generate([prompt])).texts, PROMPTS))
    assert answers == [[f"question {i}:0"] for i in range(40)]


def test_leaving_a_stream_early_ends_the_call_on_the_server(address: str, fake: FakeRollout) -> None:
    def first_at_once(prompt: str, index: int, version: int) -> str:
        fake.delay_s = LONG_S
        return prompt

    fake.respond = first_at_once
    with blocking(RolloutClient, address) as rollout:
        for _ in rollout.generate(PROMPTS):
            break
        assert_idle_long_before_all_are_done(rollout)


def test_an_interrupted_call_is_cancelled_on_the_server(address: str, fake: FakeRollout) -> None:
    def interrupt() -> None:
        while not fake.requests:  # then the call is under way
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    fake.delay_s = LONG_S
    with blocking(RolloutClient, address) as rollout:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            next(rollout.generate(PROMPTS[:1]))
        assert_idle_long_before_all_are_done(rollout)


def assert_idle_long_before_all_are_done(rollout: RolloutClient) -> None:
    """The next prompt takes LONG_S; a call that was ended stops generating long before."""
    deadline = time.monotonic() + LONG_S / 3
    while rollout.get_status().running_requests:
        assert time.monotonic() < deadline, "the call goes on"
        time.sleep(0.01)
    generated = rollout.get_status().generated_tokens
    time.sleep(0.2)
    assert rollout.get_status().generated_tokens == generated


def test_a_closed_client_ends_its_channel(address: str) -> None:
    with blocking(RolloutClient, address) as rollout:
        rollout.get_status()
    with pytest.raises(Exception, match="closed"):
        rollout.get_status()
