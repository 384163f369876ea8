"""The smallest cases of what the streams of tests/faults found: calls that meet, come late, or see another clock."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis
from buffer_samples import make_samples, numbers_of
from relay_runs import RelayRun

from baton.clients import BufferClient, LedgerClient
from baton.errors import ConflictError
from baton.relay.builtins import last
from processes import ServiceProcess, StoreProcess

SIZES = {"expected_samples": None, "global_batch_size": 8, "micro_batch_size": 2}


@pytest.fixture
async def client(buffer: ServiceProcess) -> AsyncIterator[BufferClient]:
    async with BufferClient(buffer.address, timeout_s=20) as client:
        yield client


async def lease(client: BufferClient, run_id: str, episode: int, step: int, rank: int = 0, ranks: int = 1) -> list[int]:
    found = client.lease(
        run_id, episode, pass_index=0, step_index=step, data_parallel_rank=rank, data_parallel_size=ranks, wait_s=30
    )
    return [number async for batch in found for number in numbers_of(batch.samples)]


async def test_ranks_that_wait_for_samples_together_get_each_of_them_once(client, run_id):
    for episode in range(20):  # with the two reads of one list mixed up, one episode in two had the wrong samples
        await client.open_episode(run_id, episode, **SIZES)
        waiting = asyncio.gather(*(lease(client, run_id, episode, 0, rank, 4) for rank in range(4)))
        await asyncio.sleep(0.01)
        for first in range(0, 24, 4):
            await client.put(run_id, episode, make_samples(range(first, first + 4)))
        got = [await waiting]
        for step in (1, 2):
            got.append(await asyncio.gather(*(lease(client, run_id, episode, step, rank, 4) for rank in range(4))))
        assert [number for shares in got for share in shares for number in share] == list(range(24)), f"episode {episode}"


async def test_a_step_of_an_ended_relayed_episode_is_not_leased_again(buffer, client, run_id):
    async with RelayRun(buffer.address, run_id) as run:
        await run.roll_out(0, make_samples(range(4)))
        await run.choose(0, last)
        await run.train(0, 1, 0)
    with pytest.raises(ConflictError, match=r"episode 0 of .* was trained and ended"):
        await lease(client, run_id, 0, 0)


async def test_a_group_is_held_once_more_at_most_when_the_clock_is_set_back(buffer, client, run_id, store: StoreProcess):
    async with LedgerClient(buffer.address, timeout_s=20) as ledger:
        await client.open_episode(run_id, 0, **SIZES)
        await ledger.issue_groups(run_id, 0, ["g0"], producer="dead", timeout_s=0.3)
        with redis.Redis.from_url(store.url) as data:  # an hour ahead: as if the clock was set back since
            key = f"baton:{{{run_id}}}:episode:0:issues"
            stage, attempt, since, rest = data.hget(key, "g0").decode().split(" ", 3)
            data.hset(key, "g0", f"{stage} {attempt} {float(since) + 3600:.3f} {rest}")
        assert (await ledger.issue_groups(run_id, 0, ["g0"], producer="next", timeout_s=60)).held == ["g0"]
        await asyncio.sleep(0.4)
        assert (await ledger.issue_groups(run_id, 0, ["g0"], producer="next", timeout_s=60)).granted == ["g0"]
