"""What the buffer costs beside its rates: memory, leases after much history, and a choice by metadata alone."""

import asyncio
import statistics
import time
import uuid
from typing import TYPE_CHECKING, Any

from buffer_samples import payload_bytes, samples_of
from report import note, rounded

from baton.clients import BufferClient, RelayClient
from baton.relay.chosen import training_set
from baton.relay.history import RelayHistory

if TYPE_CHECKING:
    from buffer import Place

MEMORY_SAMPLES, MEMORY_TOKENS, MEMORY_GROUP = 200_000, 1_000, 8
MEMORY_GOAL = 1.15
HISTORY = (1_000, 10_000, 100_000, 1_000_000)
HISTORY_LEASES = 60
HISTORY_GOAL = 1.2
STREAM_SAMPLES, STREAM_GROUP, STREAM_STEP = 100_000, 8, 64
STREAM_SPAN = 200
"""Steps whose median is compared, near the start and at the end."""
RELAY_SAMPLES = 100_000
RELAY_GOAL_S = 1.0
PUTS_AT_ONCE = 8
SMALL = 64
"""Bytes of the samples that are only counted."""


async def fill(
    client: BufferClient, run_id: str, episode: int, count: int, sample_bytes: int, per_put: int, **options: Any
) -> int:
    """Stores a closed dynamic episode, `per_put` samples at a time; returns the bytes of its tokens."""
    await client.open_episode(run_id, episode, expected_samples=None, global_batch_size=64, micro_batch_size=64, **options)
    firsts, stored = iter(range(0, count, per_put)), 0

    async def put() -> None:
        nonlocal stored
        for first in firsts:
            samples = samples_of(min(per_put, count - first), sample_bytes, name=f"e{episode}-{first}-")
            stored += payload_bytes(samples)
            await client.put(run_id, episode, samples)

    await asyncio.gather(*(put() for _ in range(PUTS_AT_ONCE)))
    await client.close_episode(run_id, episode)
    return stored


async def memory(place: "Place") -> dict[str, Any]:
    """What MEMORY_SAMPLES take in the store, in groups of MEMORY_GROUP as a rollout puts them."""
    place.flush()
    before = used_memory(place)
    async with BufferClient(place.address) as client:
        payload = await fill(client, uuid.uuid4().hex, 0, MEMORY_SAMPLES, 8 * MEMORY_TOKENS, MEMORY_GROUP)
    ratio = (used_memory(place) - before) / payload
    note(f"memory: {ratio:.3f} x {payload / 2**20:.0f} MiB")
    return {"ratio": rounded(ratio), "goal": MEMORY_GOAL, "met": ratio < MEMORY_GOAL, "payload_bytes": payload}


def used_memory(place: "Place") -> int:
    lines = place.redis("INFO", "memory").splitlines()
    return int(next(line for line in lines if line.startswith("used_memory:")).partition(":")[2])


async def history_cost(place: "Place") -> dict[str, Any]:
    """Median seconds of one lease of 64 samples and its acknowledgement, by how many samples the episode has."""
    seconds = {}
    async with BufferClient(place.address) as client:
        for count in HISTORY:
            place.flush()
            run_id = uuid.uuid4().hex
            await fill(client, run_id, 0, count, SMALL, per_put=1_000)
            spans = []
            for step in range(-5, min(HISTORY_LEASES, count // 64)):
                began = time.perf_counter()
                lease = client.lease(run_id, 0, pass_index=0, step_index=max(step, 0))
                batches = [batch async for batch in lease]
                if step >= 0:
                    spans.append(time.perf_counter() - began)
                    await client.ack(run_id, 0, batches[0].lease_id, global_step=step)
            seconds[str(count)] = rounded(statistics.median(spans))
            note(f"history: a lease with {count} samples stored takes {seconds[str(count)] * 1e3:.2f} ms")
    growth = seconds[str(HISTORY[-1])] / seconds[str(HISTORY[0])]
    return {"growth": rounded(growth), "goal": HISTORY_GOAL, "met": growth <= HISTORY_GOAL, "lease_s": seconds}


async def streaming_cost(place: "Place") -> dict[str, Any]:
    """Median seconds of a lease behind an episode that is put in groups of STREAM_GROUP, near its start and at its end."""
    place.flush()
    run_id, spans = uuid.uuid4().hex, []
    async with BufferClient(place.address) as client:
        await client.open_episode(
            run_id, 0, expected_samples=None, global_batch_size=STREAM_STEP, micro_batch_size=STREAM_STEP
        )  # fmt: skip
        for step in range(STREAM_SAMPLES // STREAM_STEP):
            groups = [
                samples_of(STREAM_GROUP, SMALL, name=f"{step}-{group}-", group_size=STREAM_GROUP)
                for group in range(STREAM_STEP // STREAM_GROUP)
            ]
            await asyncio.gather(*(client.put(run_id, 0, group) for group in groups))
            began = time.perf_counter()
            lease = client.lease(run_id, 0, pass_index=0, step_index=step)
            batches = [batch async for batch in lease]
            spans.append(time.perf_counter() - began)
            await client.ack(run_id, 0, batches[0].lease_id, global_step=step)
    first, last = (rounded(statistics.median(some)) for some in (spans[STREAM_SPAN : 2 * STREAM_SPAN], spans[-STREAM_SPAN:]))
    note(f"streaming: a lease takes {first * 1e3:.2f} ms near the start, {last * 1e3:.2f} ms after {STREAM_SAMPLES} samples")
    growth = last / first
    return {"growth": rounded(growth), "goal": HISTORY_GOAL, "met": growth <= HISTORY_GOAL, "lease_s": [first, last]}


async def relay_choice(place: "Place") -> dict[str, Any]:
    """Seconds to choose the better half of RELAY_SAMPLES by their rewards, from a cold start, and with the history read."""
    place.flush()
    run_id, spans = uuid.uuid4().hex, []
    async with BufferClient(place.address) as client, RelayClient(place.address) as relay:
        await fill(client, run_id, 0, RELAY_SAMPLES, SMALL, per_put=8, relayed=True)
        await place.restart_buffer()
    async with RelayClient(place.address) as relay:
        history = RelayHistory(relay, run_id, 60)
        for _ in range(2):
            began = time.perf_counter()
            buffers = await history.buffers()
            chosen = await asyncio.to_thread(lambda buffers=buffers: training_set(better_half(buffers), buffers, 0))
            await relay.select(run_id, 0, chosen.references, chosen.made)
            spans.append(rounded(time.perf_counter() - began))
    note(f"relay: {spans[0]:.2f} s cold, {spans[1]:.2f} s again")
    return {"cold_s": spans[0], "again_s": spans[1], "goal_s": RELAY_GOAL_S, "met": spans[0] < RELAY_GOAL_S}


def better_half(episode_relay_buffers: list) -> list:
    """A relay function that looks at every sample's reward."""
    samples = [sample for buffer in episode_relay_buffers for sample in buffer.buffer]
    return sorted(samples, key=lambda sample: sample["reward"], reverse=True)[: len(samples) // 2]
