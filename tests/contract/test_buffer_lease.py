"""Leases over real gRPC and a real store: which samples, when, and for how long they are waited for."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from buffer_samples import make_samples, numbers_of

from baton.clients import BufferClient
from baton.errors import (
    ConflictError,
    DeadlineError,
    InvalidRequestError,
    NotFoundError,
)  # fmt: skip
from processes import ServiceProcess


@pytest.fixture
async def client(buffer: ServiceProcess) -> AsyncIterator[BufferClient]:
    async with BufferClient(buffer.address, timeout_s=20) as client:
        yield client


async def open_with(
    client: BufferClient,
    run_id: str,
    stored: int,
    *,
    expected: int | None = None,
    batches: tuple[int, int] = (8, 4),
    close: bool = False,
) -> None:
    """An episode with `stored` samples from puts of 3; `batches` are global and micro batch size."""
    await client.open_episode(
        run_id, 0, expected_samples=expected, global_batch_size=batches[0], micro_batch_size=batches[1]
    )
    for first in range(0, stored, 3):
        await client.put(run_id, 0, make_samples(range(first, min(first + 3, stored))))
    if close:
        await client.close_episode(run_id, 0)


async def lease(client: BufferClient, run_id: str, step: int, **options) -> list[list[int]]:
    """Numbers of the leased samples, by micro-batch; those that are wrapped are negative or -0.5 for 0."""
    options = {"pass_index": 0, "wait_s": 30.0} | options
    rows = []
    async for micro_batch in client.lease(run_id, 0, step_index=step, **options):
        assert micro_batch.lease_id == f"p{options['pass_index']}-s{step}-a1"
        pairs = zip(numbers_of(micro_batch.samples), micro_batch.wrapped, strict=True)
        rows.append([(-number or -0.5) if wrapped else number for number, wrapped in pairs])
    return rows


@pytest.mark.parametrize(
    ("samples", "batches", "ranks", "step", "expected"),
    [
        (16, (10, 5), 1, 0, [[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]]),
        (16, (10, 5), 1, 1, [[[10, 11, 12, 13, 14], [15, -0.5, -1, -2, -3]]]),
        (20, (16, 2), 4, 0, [[[4 * r, 4 * r + 1], [4 * r + 2, 4 * r + 3]] for r in range(4)]),
        (20, (16, 2), 4, 1, [
            [[16, 17], [18, 19]], [[-0.5, -1], [-2, -3]], [[-4, -5], [-6, -7]], [[-8, -9], [-10, -11]],
        ]),
        (3, (8, 4), 1, 0, [[[0, 1, 2, -0.5], [-1, -2, -0.5, -1]]]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["fixed", "dynamic"])
async def test_ranks_get_consecutive_samples_and_the_tail_wraps(
    client, run_id, kind, samples, batches, ranks, step, expected
):
    await open_with(client, run_id, samples, expected=samples if kind == "fixed" else None, batches=batches, close=True)
    shares = [lease(client, run_id, step, data_parallel_rank=rank, data_parallel_size=ranks) for rank in range(ranks)]
    assert await asyncio.gather(*shares) == expected


async def test_a_later_pass_is_shuffled_reproducibly_and_still_trains_every_sample_once(client, run_id):
    await open_with(client, run_id, 16, close=True)

    async def whole_pass(pass_index, seed):
        steps = [await lease(client, run_id, step, pass_index=pass_index, shuffle_seed=seed) for step in range(2)]
        return [number for step in steps for row in step for number in row]

    orders = [await whole_pass(pass_index, 42) for pass_index in (1, 2)]
    assert orders[0] != orders[1]
    assert all(sorted(order) == list(range(16)) != order for order in orders)
    assert await whole_pass(1, 42) == orders[0]
    assert await whole_pass(0, 42) == list(range(16))
    with pytest.raises(ConflictError, match=r"shuffle_seed is 43, but .* is shuffled by 42"):
        await whole_pass(1, 43)


@pytest.mark.parametrize("expected", [24, None])
async def test_a_full_step_is_leased_before_the_episode_is_closed(client, run_id, expected):
    await open_with(client, run_id, 8, expected=expected)
    assert await lease(client, run_id, 0) == [[0, 1, 2, 3], [4, 5, 6, 7]]


async def test_the_tail_of_a_fixed_episode_is_leased_once_all_its_samples_are_stored(client, run_id):
    await open_with(client, run_id, 10, expected=12, batches=(8, 4))
    waiting = asyncio.create_task(lease(client, run_id, 1))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await client.put(run_id, 0, make_samples([10, 11]))
    assert await waiting == [[8, 9, 10, 11], [-0.5, -1, -2, -3]]


async def test_the_tail_of_a_dynamic_episode_waits_for_the_close_that_gives_its_total(client, run_id):
    await open_with(client, run_id, 10)
    waiting = asyncio.create_task(lease(client, run_id, 1))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await client.close_episode(run_id, 0)
    assert await waiting == [[8, 9, -0.5, -1], [-2, -3, -4, -5]]


async def test_a_later_pass_of_a_dynamic_episode_waits_for_its_close(client, run_id):
    await open_with(client, run_id, 8)
    with pytest.raises(DeadlineError, match=r"needs the episode to be closed, but after 0.1 s 8 samples are stored"):
        await lease(client, run_id, 0, pass_index=1, wait_s=0.1)
    await client.close_episode(run_id, 0)
    assert len(await lease(client, run_id, 0, pass_index=1)) == 2


async def test_micro_batches_arrive_as_soon_as_their_samples_do(client, run_id):
    await open_with(client, run_id, 4, expected=8)
    stream = aiter(client.lease(run_id, 0, pass_index=0, step_index=0, wait_s=30))
    assert numbers_of((await asyncio.wait_for(anext(stream), 20)).samples) == [0, 1, 2, 3]
    await client.put(run_id, 0, make_samples(range(4, 8)))
    assert numbers_of((await asyncio.wait_for(anext(stream), 20)).samples) == [4, 5, 6, 7]
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_lease_that_waits_too_long_says_what_was_stored_and_what_is_needed(client, run_id):
    await open_with(client, run_id, 11, expected=24)
    began = time.monotonic()
    with pytest.raises(DeadlineError, match=r"step 1 of pass 0 .* needs 12, but after 0.3 s 11 samples are stored"):
        await lease(client, run_id, 1, wait_s=0.3)
    assert 0.3 <= time.monotonic() - began < 15
    assert (await client.get_episode(run_id, 0)).leased == 0, "what was never handed out is not leased"


async def test_a_step_that_is_not_acknowledged_is_handed_out_again_the_same(client, run_id):
    await open_with(client, run_id, 16)
    assert await lease(client, run_id, 1) == await lease(client, run_id, 1) == [[8, 9, 10, 11], [12, 13, 14, 15]]


async def test_an_acknowledged_step_is_not_handed_out_again(client, run_id):
    await open_with(client, run_id, 16)
    await lease(client, run_id, 0)
    assert await client.ack(run_id, 0, "p0-s0-a1", global_step=31) == 1
    with pytest.raises(ConflictError, match=r"p0-s0 of .* trained by optimizer step 31"):
        await lease(client, run_id, 0)


async def test_an_acknowledgement_counts_once_and_belongs_to_one_optimizer_step(client, run_id):
    await open_with(client, run_id, 16)
    await lease(client, run_id, 0)
    await lease(client, run_id, 1)
    for _ in range(2):
        assert await client.ack(run_id, 0, "p0-s1-a1", global_step=5) == 1
    with pytest.raises(ConflictError, match="trained by optimizer step 5, not 6"):
        await client.ack(run_id, 0, "p0-s1-a1", global_step=6)
    assert await client.ack(run_id, 0, "p0-s0-a1", global_step=6) == 2
    assert (await client.get_episode(run_id, 0)).trained == 16


async def test_what_was_not_leased_cannot_be_acknowledged(client, run_id):
    await open_with(client, run_id, 16)
    with pytest.raises(NotFoundError, match="p0-s0-a1"):
        await client.ack(run_id, 0, "p0-s0-a1", global_step=0)


@pytest.mark.parametrize(
    ("step", "options", "message"),
    [
        (2, {}, "a pass over the 16 samples .* has 2 steps"),
        (0, {"data_parallel_size": 3}, "8 is not a multiple of .* 4 x 3"),
        (0, {"data_parallel_size": 2, "data_parallel_rank": 2}, "data_parallel_rank is 2"),
        (0, {"data_parallel_size": 0}, "data_parallel_rank is 0"),
        (0, {"wait_s": -1.0}, "wait_s is -1"),
    ],
)
async def test_a_share_that_does_not_exist_is_refused(client, run_id, step, options, message):
    await open_with(client, run_id, 16, close=True)
    with pytest.raises(InvalidRequestError, match=message):
        await lease(client, run_id, step, **options)


async def test_a_lease_past_the_end_of_a_dynamic_episode_ends_when_it_is_closed(client, run_id):
    await open_with(client, run_id, 8)
    waiting = asyncio.create_task(lease(client, run_id, 1))
    await asyncio.sleep(0.1)
    await client.close_episode(run_id, 0)
    with pytest.raises(InvalidRequestError, match="has 1 steps"):
        await waiting


async def test_an_empty_dynamic_episode_has_no_steps(client, run_id):
    await open_with(client, run_id, 0, close=True)
    with pytest.raises(InvalidRequestError, match=r"0 samples .* has 0 steps"):
        await lease(client, run_id, 0)


async def test_a_micro_batch_of_several_messages_arrives_as_one(client, run_id):
    samples = make_samples(range(8), tokens=50_000)  # 13 bytes per token, 5.2 MB in all
    await client.open_episode(run_id, 0, expected_samples=8, global_batch_size=8, micro_batch_size=8)
    await client.put(run_id, 0, samples)
    (found,) = [batch async for batch in client.lease(run_id, 0, pass_index=0, step_index=0)]
    assert found.samples.to_proto() == samples.to_proto()
    assert found.wrapped.tolist() == [False] * 8


async def test_micro_batches_are_cut_by_tokens_if_that_is_asked_for(client, run_id):
    await open_with(client, run_id, 16)
    tokens = make_samples(range(8)).token_counts().tolist()
    rows = await lease(client, run_id, 0, micro_batch_tokens=20)
    assert [number for row in rows for number in row] == list(range(8))
    assert all(sum(tokens[number] for number in row) <= 20 for row in rows)
    assert len(rows) > 2
    assert await lease(client, run_id, 0, micro_batch_tokens=1) == [[number] for number in range(8)]


async def test_pairs_stay_together_in_later_passes_and_in_micro_batches(client, run_id):
    sizes = {"expected_samples": 16, "global_batch_size": 8, "micro_batch_size": 4, "samples_per_unit": 2}
    await client.open_episode(run_id, 0, **sizes)
    await client.put(run_id, 0, make_samples(range(16)))
    rows = [row for step in range(2) for row in await lease(client, run_id, step, pass_index=1, micro_batch_tokens=20)]
    pairs = [row[at : at + 2] for row in rows for at in range(0, len(row), 2)]
    assert sorted(pairs) == [[number, number + 1] for number in range(0, 16, 2)] != pairs


async def test_what_divides_a_pair_is_refused(client, run_id):
    with pytest.raises(InvalidRequestError, match="samples_per_unit is 2, of which micro_batch_size 3"):
        await client.open_episode(
            run_id, 0, expected_samples=None, global_batch_size=6, micro_batch_size=3, samples_per_unit=2
        )
    await client.open_episode(
        run_id, 0, expected_samples=None, global_batch_size=4, micro_batch_size=4, samples_per_unit=2
    )
    with pytest.raises(InvalidRequestError, match=r"3 samples are put, but .* keeps every 2 together"):
        await client.put(run_id, 0, make_samples([0, 1, 2]))
    assert await client.put(run_id, 0, make_samples([0, 1])) == 2


async def test_an_optimizer_step_trains_one_step_only(client, run_id):
    await open_with(client, run_id, 16)
    for step in (0, 1):
        await lease(client, run_id, step)
    await client.ack(run_id, 0, "p0-s0-a1", global_step=7)
    with pytest.raises(ConflictError, match="optimizer step 7 trained p0-s0 of episode 0 already"):
        await client.ack(run_id, 0, "p0-s1-a1", global_step=7)
    assert (await client.get_episode(run_id, 0)).trained == 8
