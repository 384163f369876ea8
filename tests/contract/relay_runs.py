"""A run with relay through the SDK, without a trainer: what the coordinator does per episode, and what would be trained."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from baton.clients import BufferClient, RelayClient
from baton.relay.chosen import training_set
from baton.relay.history import RelayHistory
from baton.samples import Samples


class RelayRun:
    """Episodes of one run, relayed or not."""

    def __init__(self, address: str, run_id: str) -> None:
        self.run_id = run_id
        self.buffer = BufferClient(address, timeout_s=20)
        self.relay = RelayClient(address, timeout_s=20)
        self.history = RelayHistory(self.relay, run_id, 20)
        self.lease_id = ""
        """Of the last lease."""

    async def __aenter__(self) -> "RelayRun":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.buffer.close()
        await self.relay.close()

    async def roll_out(
        self, episode: int, samples: Samples, *, batches: tuple[int, int] = (4, 2), relayed: bool = True, put: int = 4
    ) -> int:  # fmt: skip
        """Stores a whole episode, `put` samples at a time; returns its steps unless it is relayed."""
        await self.buffer.open_episode(
            self.run_id, episode, expected_samples=None, global_batch_size=batches[0], micro_batch_size=batches[1],
            relayed=relayed,
        )  # fmt: skip
        for at in range(0, len(samples), put):
            part = samples.take(range(at, min(at + put, len(samples))))
            await self.buffer.put(self.run_id, episode, part, request_id=f"at {at}")
        return (await self.buffer.close_episode(self.run_id, episode))[1]

    async def choose(self, episode: int, function: Callable[[list[Any]], Any], keep: int | None = None) -> tuple[int, int]:
        """Evicts, calls the function in a thread and makes the training set; returns (samples, steps)."""
        await self.relay.trim_history(self.run_id, keep_episodes=keep)
        buffers = await self.history.buffers(keep)
        chosen = await asyncio.to_thread(lambda: training_set(function(buffers), buffers, episode))
        return await self.relay.select(self.run_id, episode, chosen.references, chosen.made)

    async def lease(self, episode: int, step: int, ranks: int = 1) -> list[list[Samples]]:
        """The micro-batches of each rank."""
        shares = []
        for rank in range(ranks):
            found = self.buffer.lease(
                self.run_id, episode, pass_index=0, step_index=step, data_parallel_rank=rank, data_parallel_size=ranks,
                wait_s=30,
            )  # fmt: skip
            batches = [batch async for batch in found]
            self.lease_id = batches[0].lease_id
            shares.append([batch.samples for batch in batches])
        return shares

    async def train(self, episode: int, steps: int, first_global_step: int, ranks: int = 1) -> list[list[list[Samples]]]:
        """Leases and acknowledges every step, then ends the episode; returns what was leased, by step and rank."""
        leased = []
        for step in range(steps):
            leased.append(await self.lease(episode, step, ranks))
            await self.buffer.ack(self.run_id, episode, self.lease_id, global_step=first_global_step + step)
        await self.buffer.delete_episode(self.run_id, episode)
        return leased


def ids(leased: Sequence[Sequence[Sequence[Samples]]]) -> list[list[list[list[str]]]]:
    """Sample ids by step, rank and micro-batch."""
    return [[[samples.sample_ids for samples in share] for share in step] for step in leased]
