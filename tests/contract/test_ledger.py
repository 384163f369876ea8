"""The ledger over real gRPC and a real store: prompt groups, checkpoints, budgets, small state, what can be asked."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
from buffer_samples import make_samples

from baton.clients import BufferClient, LedgerClient
from baton.errors import (
    BackpressureError,
    ConflictError,
    DeadLetterError,
    InvalidRequestError,
    LeaseLostError,
    NotFoundError,
)  # fmt: skip
from processes import ServiceProcess, StoreProcess

SIZES = {"expected_samples": None, "global_batch_size": 4, "micro_batch_size": 2}


@pytest.fixture
async def client(buffer: ServiceProcess) -> AsyncIterator[LedgerClient]:
    async with LedgerClient(buffer.address, timeout_s=20) as client:
        yield client


async def test_state_is_changed_only_by_who_read_the_present_revision(client, run_id):
    assert await client.get_state(run_id, "coordinator") == (b"", 0)
    assert await client.put_state(run_id, "coordinator", b"one", expected_revision=0) == 1
    assert await client.put_state(run_id, "coordinator", b"two\0\xff", expected_revision=1) == 2
    with pytest.raises(ConflictError, match=r"at revision 2, not 1"):
        await client.put_state(run_id, "coordinator", b"three", expected_revision=1)
    with pytest.raises(ConflictError, match=r"at revision 2, not 0"):
        await client.put_state(run_id, "coordinator", b"three", expected_revision=0)
    assert await client.get_state(run_id, "coordinator") == (b"two\0\xff", 2)
    assert await client.get_state(run_id, "other") == (b"", 0)


async def test_a_repeated_write_of_state_is_answered_as_the_first_was(client, run_id):
    for _ in range(2):
        assert await client.put_state(run_id, "coordinator", bytes(2**20), expected_revision=0) == 1
    assert await client.get_state(run_id, "coordinator") == (bytes(2**20), 1)


@pytest.mark.parametrize(
    ("name", "value", "message"), [("", b"x", "name is empty"), ("a", bytes(2**20 + 1), "at most 1048576")]
)
async def test_state_that_has_no_name_or_is_too_large_is_refused(client, run_id, name, value, message):
    with pytest.raises(InvalidRequestError, match=message):
        await client.put_state(run_id, name, value, expected_revision=0)


@pytest.fixture
async def samples(buffer: ServiceProcess, run_id: str) -> AsyncIterator[BufferClient]:
    """A client of the data path, and episode 0 opened."""
    async with BufferClient(buffer.address, timeout_s=20) as samples:
        await samples.open_episode(run_id, 0, **SIZES)
        yield samples


async def train(client: BufferClient, run_id: str, episode: int, steps: int, first: int = 1) -> None:
    for step in range(steps):
        batches = [batch async for batch in client.lease(run_id, episode, pass_index=0, step_index=step)]
        await client.ack(run_id, episode, batches[0].lease_id, global_step=first + step)


async def test_a_group_is_one_producers_until_it_is_stored(client, samples, run_id):
    issued = await client.issue_groups(run_id, 0, ["g0", "g1", "g2"], producer="one", timeout_s=60)
    assert issued.granted == ["g0", "g1", "g2"]
    again = await client.issue_groups(run_id, 0, ["g0"], producer="one", timeout_s=60)
    other = await client.issue_groups(run_id, 0, ["g0", "g3"], producer="two", timeout_s=60)
    assert (again.granted, other.granted, other.held) == (["g0"], ["g3"], ["g0"])
    await samples.put(run_id, 0, make_samples(range(4)))
    stored = await client.issue_groups(run_id, 0, ["g0", "g1"], producer="two", timeout_s=60)
    assert (stored.stored, stored.held) == (["g0"], ["g1"])
    (state,) = await client.list_episodes(run_id)
    assert (state.issued_groups, state.generated_groups, state.stored_samples) == (3, 0, 4)


async def test_a_group_whose_time_is_over_goes_to_who_asks_next_but_not_for_ever(client, samples, run_id):
    for producer in ("one", "two", "three"):
        assert (await client.issue_groups(run_id, 0, ["g0"], producer=producer, timeout_s=0.05)).granted == ["g0"]
        await asyncio.sleep(0.06)
    dead = (await client.issue_groups(run_id, 0, ["g0"], producer="four", timeout_s=60)).dead
    assert dead == {"g0": "issued 3 times, and never stored in time; last to three"}
    assert (await client.audit(run_id)).dead == [
        "episode 0 group g0: issued 3 times, and never stored in time; last to three"
    ]


async def test_a_group_that_was_given_up_and_is_put_after_all_is_no_dead_letter(client, samples, run_id):
    for _ in range(4):
        issued = await client.issue_groups(run_id, 0, ["g0", "g1"], producer="one", timeout_s=60)
        await client.report_groups(run_id, 0, issued.granted, producer="one", failure="out of memory")
    assert set(issued.dead) == {"g0", "g1"}
    await samples.put(run_id, 0, make_samples(range(4)))
    assert list((await client.audit(run_id)).dead) == ["episode 0 group g1: out of memory"]


async def test_a_group_that_failed_is_issued_again_at_once_and_its_last_reason_is_kept(client, samples, run_id):
    for number in range(3):
        granted = (await client.issue_groups(run_id, 0, ["g0"], producer="one", timeout_s=60)).granted
        assert granted == ["g0"]
        await client.report_groups(run_id, 0, granted, producer="one", failure=f"out of memory {number}")
    dead = (await client.issue_groups(run_id, 0, ["g0"], producer="one", timeout_s=60)).dead
    assert dead == {"g0": "out of memory 2"}


async def test_only_the_holder_reports_of_a_group(client, samples, run_id):
    await client.issue_groups(run_id, 0, ["g0", "g1"], producer="one", timeout_s=60)
    await client.report_groups(run_id, 0, ["g0", "g1"], producer="two", failure="not mine")
    await client.report_groups(run_id, 0, ["g1"], producer="one")
    (state,) = await client.list_episodes(run_id)
    assert (state.issued_groups, state.generated_groups, state.failed_groups) == (2, 1, 0)


async def test_groups_of_an_episode_that_is_closed_or_missing_are_not_issued(client, samples, run_id):
    with pytest.raises(NotFoundError):
        await client.issue_groups(run_id, 1, ["g0"], producer="one", timeout_s=60)
    await samples.close_episode(run_id, 0)
    with pytest.raises(ConflictError, match="is closed"):
        await client.issue_groups(run_id, 0, ["g0"], producer="one", timeout_s=60)
    for producer, timeout_s, message in (("", 1, "producer is empty"), ("one", 0, "timeout_s is 0")):
        with pytest.raises(InvalidRequestError, match=message):
            await client.issue_groups(run_id, 0, ["g0"], producer=producer, timeout_s=timeout_s)


async def test_a_sample_is_found_with_its_place_and_its_steps(client, samples, run_id):
    await samples.put(run_id, 0, make_samples(range(8)))
    await samples.close_episode(run_id, 0)
    await train(samples, run_id, 0, 1, first=17)
    found = await client.find_sample(run_id, "s2")
    assert (found.episode_id, found.position, found.steps) == (0, 2, ["episode 0, pass 0, step 0: acked 17"])
    assert found.samples.to_proto() == make_samples([2]).to_proto()
    assert (await client.find_sample(run_id, "s6")).steps == []
    with pytest.raises(NotFoundError, match="no sample 'nobody'"):
        await client.find_sample(run_id, "nobody")


async def test_runs_are_listed_by_their_newest_episode(client, samples, run_id):
    await samples.open_episode(run_id, 3, **SIZES)
    newest = {state.run_id: state.episode_id for state in await client.list_episodes()}
    assert newest[run_id] == 3


async def test_the_proof_of_a_finished_run_counts_what_was_trained(client, samples, run_id):
    for episode in range(2):
        await samples.open_episode(run_id, episode, **SIZES)
        await samples.put(run_id, episode, make_samples(range(8)))
        await samples.close_episode(run_id, episode)
        await train(samples, run_id, episode, 2, first=1 + 2 * episode)
        await samples.delete_episode(run_id, episode)
    proof = await client.audit(run_id)
    assert (list(proof.faults), proof.ended_episodes, proof.ended_samples, proof.optimizer_steps) == ([], 2, 16, 4)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda store, key: store.delete(store.keys(key("chunk:*"))[0]), "4 samples of episode 0 .* are lost"),
        (lambda store, key: store.expire(store.keys(key("chunk:*"))[0], 500), "4 samples of episode 0 .* expire in"),
        (lambda store, key: store.set(key("chunk:" + "ab" * 16), b"x"), "belongs to no episode"),
        (lambda store, key: store.srem(key("episode:0:sample-ids"), "s3"), "knows 7 sample ids, but its chunks have 8"),
        (lambda store, key: store.hset(key("episode:0"), "stored", 9), "says that it has 9 samples, but its chunks have 8"),
        (lambda store, key: store.zadd(key("global-steps"), {"0 p0-s1": 1}), "optimizer step 1 trained two steps"),
        (lambda store, key: store.zadd(key("global-steps"), {"0 p0-s0": 3}), "p0-s0 of episode 0 .* is 'acked 1', but"),
        (lambda store, key: store.zadd(key("global-steps"), {"0 p0-s1": 5}), "steps between 1 and 5 trained nothing"),
        (lambda store, key: store.hset(key("usage"), "samples", 3), "counts 3 samples in use, but its episodes have 8"),
        (lambda store, key: store.hset(key("ended"), 7, "8 1 2 0 0"), "episode 7 .* ended after 1 passes of 2 steps, but 0"),
        (lambda store, key: store.hset(key("episode:0"), "pass", 1), "pass 0 of episode 0 .* was left after 1 of 2 steps"),
    ],
)  # fmt: skip
async def test_the_proof_finds_what_was_lost_doubled_or_left_over(client, samples, run_id, store, damage, fault):
    for first in (0, 4):
        await samples.put(run_id, 0, make_samples(range(first, first + 4)))
    await samples.close_episode(run_id, 0)
    await train(samples, run_id, 0, 1)
    assert list((await client.audit(run_id)).faults) == []
    with redis.Redis.from_url(store.url, decode_responses=True) as raw:
        damage(raw, lambda name: f"baton:{{{run_id}}}:{name}")
    found = (await client.audit(run_id)).faults
    assert any(re.search(fault, sentence) for sentence in found), found


@pytest.fixture(scope="module")
def strict(store: StoreProcess, run_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A buffer with a small budget that counts samples as done with a checkpoint only."""
    options = ("--store", store.url, "--set", "store.max_samples=8", "--set", "store.ack_on=checkpoint")
    process = ServiceProcess("buffer", run_file, tmp_path_factory.mktemp("strict"), *options)
    yield process.start()
    process.kill()


async def test_a_put_beyond_the_budget_waits_until_there_is_room_and_drops_nothing(strict, run_id):
    async with BufferClient(strict.address, timeout_s=20) as buffer, LedgerClient(strict.address, timeout_s=20) as ledger:
        await buffer.open_episode(run_id, 0, **SIZES)
        await buffer.open_episode(run_id, 1, **SIZES)
        await buffer.put(run_id, 0, make_samples(range(8)))
        waiting = asyncio.create_task(buffer.put(run_id, 1, make_samples(range(8, 12))))
        with pytest.raises(BackpressureError, match=r"has 8 samples, .* and 4 more exceed store.max_samples"):
            await buffer.put(run_id, 1, make_samples(range(12, 16)), timeout_s=3)
        await buffer.close_episode(run_id, 0)
        await train(buffer, run_id, 0, 2)
        await ledger.confirm_trained(run_id, 2)
        assert not waiting.done()
        await buffer.delete_episode(run_id, 0)
        assert await asyncio.wait_for(waiting, 20) == 4
        assert list((await ledger.audit(run_id)).faults) == []


async def test_a_put_that_waits_for_room_writes_nothing_into_the_store_meanwhile(strict, store, run_id):
    def writes() -> int:
        with redis.Redis.from_url(store.url, decode_responses=True) as raw:
            return raw.info("commandstats").get("cmdstat_set", {}).get("calls", 0)

    async with BufferClient(strict.address, timeout_s=20) as buffer:
        await buffer.open_episode(run_id, 0, **SIZES)
        await buffer.open_episode(run_id, 1, **SIZES)
        await buffer.put(run_id, 0, make_samples(range(8)), request_id="first")
        before = writes()
        with pytest.raises(BackpressureError, match="and 4 more exceed"):
            await buffer.put(run_id, 1, make_samples(range(8, 12)), timeout_s=3)
        assert writes() == before > 0
        assert await buffer.put(run_id, 0, make_samples(range(8)), request_id="first") == 8, "a repeat needs no room"


async def test_an_episode_larger_than_the_budget_is_refused_at_its_opening(strict, run_id):
    async with BufferClient(strict.address, timeout_s=20) as buffer:
        with pytest.raises(InvalidRequestError, match=r"to have 9 samples, more than store.max_samples"):
            await buffer.open_episode(run_id, 0, **SIZES | {"expected_samples": 9})


async def test_a_checkpoint_acknowledges_what_it_holds_and_what_is_later_is_trained_again(strict, run_id):
    async with BufferClient(strict.address, timeout_s=20) as buffer, LedgerClient(strict.address, timeout_s=20) as ledger:
        await buffer.open_episode(run_id, 0, **SIZES)
        await buffer.put(run_id, 0, make_samples(range(8)))
        await buffer.close_episode(run_id, 0)
        await train(buffer, run_id, 0, 2)

        async def counts() -> tuple[int, int]:
            (state,) = await ledger.list_episodes(run_id)
            return state.trained_samples, state.acked_samples

        assert await counts() == (8, 0)
        assert await ledger.confirm_trained(run_id, 1) == 1
        assert await counts() == (4, 4)
        with pytest.raises(ConflictError, match="p0-s0, by optimizer step 1, is acknowledged"):
            await ledger.rewind_trained(run_id, 0)
        assert [await ledger.rewind_trained(run_id, 1) for _ in range(2)] == [1, 0]
        assert await counts() == (0, 4)
        with pytest.raises(NotFoundError, match=r"p0-s1-a1 of .* is not leased"):
            await buffer.ack(run_id, 0, "p0-s1-a1", global_step=2)
        batches = [batch async for batch in buffer.lease(run_id, 0, pass_index=0, step_index=1)]
        with pytest.raises(LeaseLostError, match="as attempt 2"):
            await buffer.ack(run_id, 0, "p0-s1-a1", global_step=2)  # late, from before the trainer went back
        await buffer.ack(run_id, 0, batches[0].lease_id, global_step=2)
        assert list((await ledger.audit(run_id)).faults) == []


async def test_a_step_whose_training_is_undone_has_as_many_attempts_left_as_before(strict, run_id):
    async with BufferClient(strict.address, timeout_s=20) as buffer, LedgerClient(strict.address, timeout_s=20) as ledger:
        await buffer.open_episode(run_id, 0, **SIZES)
        await buffer.put(run_id, 0, make_samples(range(4)))

        async def leased() -> str:
            (first, *_) = [batch async for batch in buffer.lease(run_id, 0, pass_index=0, step_index=0)]
            return first.lease_id

        for attempt in range(1, 5):
            lease_id = await leased()
            assert lease_id == f"p0-s0-a{attempt}"
            await buffer.ack(run_id, 0, lease_id, global_step=1)
            assert await ledger.rewind_trained(run_id, 0) == 1
        for attempt in range(5, 8):  # store.max_attempts is 3
            lease_id = await leased()
            assert lease_id == f"p0-s0-a{attempt}"
            await buffer.release_lease(run_id, 0, lease_id, reason="no room")
        with pytest.raises(DeadLetterError, match="given up after 3 attempts: no room"):
            await leased()
