"""The lessee of a stream, a process: `stream_lessee.py ADDRESS RUN DIRECTORY WINDOW [twice]`. It goes by its own record."""

import asyncio
import json
import os
import random
import sys
import uuid
from itertools import count
from pathlib import Path

import numpy as np
from stream_calls import clients, insist
from stream_plan import GLOBAL_BATCH, LIFETIME_S, RANKS, numbers_of, passes

from baton.api.buffer.v1.ledger_pb2 import EpisodeState
from baton.clients.buffer import MicroBatch
from baton.errors import ConflictError, DeadlineError, InvalidRequestError, LeaseLostError

Key = tuple[int, int, int]
"""Episode, pass, step."""


class Record:
    """What was trained, on disk for good before anybody is told: the weights of this trainer."""

    def __init__(self, path: Path) -> None:
        raw = path.read_bytes() if path.exists() else b""
        whole = raw[: raw.rfind(b"\n") + 1]
        self.lines = [json.loads(line) for line in whole.splitlines()]
        self.global_steps: dict[Key, int] = {tuple(line["key"]): at for at, line in enumerate(self.lines)}
        self._file = path.open("ab")
        self._file.truncate(len(whole))

    def train(self, key: Key, numbers: list[int]) -> None:
        """One optimizer step."""
        self.global_steps[key] = len(self.lines)
        self.lines.append({"key": key, "numbers": numbers})
        self._file.write(json.dumps(self.lines[-1]).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


class Lessee:
    """Trains all episodes in their order; `window` steps are acknowledged together, in any order."""

    def __init__(self, address: str, run_id: str, directory: Path, window: int, twice: bool) -> None:
        self.name, self.run_id, self.window = f"lessee-{uuid.uuid4().hex}", run_id, window
        self.buffer, self.ledger, _ = clients(address, twice)
        self.record = Record(directory / "trained")
        self.leases = (directory / "leases").open("a", buffering=1)
        self.held: list[tuple[Key, str]] = []

    async def run(self) -> None:
        """Returns after the last episode; the producer tells which that is."""
        begun = self.record.lines[-1]["key"][0] if self.record.lines else -1
        for episode in count(max(begun, 0)):
            while (state := await self.state(episode)) is None and episode != begun:
                if (total := (await insist(self.ledger.get_state, self.run_id, "episodes"))[0]) and int(total) == episode:
                    return
                await asyncio.sleep(0.02)
            if state is not None and not state.ended:  # else an earlier process ended it
                await self.train_episode(episode)
                while not (await self.state(episode)).closed:  # a fixed one may be trained whole before that
                    await asyncio.sleep(0.02)
                await insist(self.buffer.delete_episode, self.run_id, episode)

    async def state(self, episode: int) -> EpisodeState | None:
        states = await insist(self.ledger.list_episodes, self.run_id)
        return next((state for state in states if state.episode_id == episode), None)

    async def train_episode(self, episode: int) -> None:
        for pass_index in range(passes(episode)):
            for step in count():
                if not await self.train_step((episode, pass_index, step)):
                    break
                if len(self.held) == self.window:
                    await self.acknowledge_held()
            await self.acknowledge_held()

    async def train_step(self, key: Key) -> bool:
        """Trains the step unless that is on record. Returns False if the pass has no such step."""
        while True:
            try:
                lease_id, numbers = await self.lease(key)
                break
            except ConflictError:  # it is trained: by the lease and the step on record, or the ledger refuses this
                await self.acknowledge(key, self.newest_lease(key))
                return True
            except (DeadlineError, InvalidRequestError) as error:
                total = (await self.state(key[0])).training_samples
                if total and key[2] * GLOBAL_BATCH >= total:
                    return False
                if isinstance(error, InvalidRequestError):
                    raise
        if key not in self.record.global_steps:
            self.record.train(key, numbers)
        elif numbers != self.record.lines[self.record.global_steps[key]]["numbers"]:
            raise SystemExit(f"step {key} had other samples before")
        self.held.append((key, lease_id))
        return True

    def newest_lease(self, key: Key) -> str:
        """The last one of the step that this process or an earlier one had."""
        stem = f"{key[0]} p{key[1]}-s{key[2]}-a"
        return [line for line in Path(self.leases.name).read_text().splitlines() if line.startswith(stem)][-1].split()[1]

    async def acknowledge_held(self) -> None:
        random.shuffle(self.held)
        while self.held:
            await self.acknowledge(*self.held.pop())

    async def acknowledge(self, key: Key, lease_id: str) -> None:
        """A lease that expired, because the buffer or the store was away, is renewed or taken again."""
        while True:
            try:
                await insist(self.buffer.ack, self.run_id, key[0], lease_id, global_step=self.record.global_steps[key])
                return
            except LeaseLostError:
                try:
                    lease_id, _ = await insist(self.buffer.renew_lease, self.run_id, key[0], lease_id, lessee=self.name)
                except LeaseLostError:
                    lease_id, _ = await self.lease(key)

    async def lease(self, key: Key) -> tuple[str, list[int]]:
        """(lease id, numbers of the samples of all ranks, without those that only fill the last step)."""
        shares = await insist(lambda: asyncio.gather(*(self.share(key, rank) for rank in range(RANKS))))
        batches = [batch for share in shares for batch in share]
        lease_id = max((batch.lease_id for batch in batches), key=lambda name: int(name.rpartition("-a")[2]))
        self.leases.write(f"{key[0]} {lease_id}\n")
        rows = [np.asarray(numbers_of(batch.samples))[~batch.wrapped] for batch in batches]
        return lease_id, np.concatenate(rows).tolist()

    async def share(self, key: Key, rank: int) -> list[MicroBatch]:
        episode, pass_index, step = key
        found = self.buffer.lease(
            self.run_id, episode, pass_index=pass_index, step_index=step, data_parallel_rank=rank, data_parallel_size=RANKS,
            wait_s=0.5, lessee=self.name,
        )  # fmt: skip
        return [batch async for batch in found]


async def main(address: str, run_id: str, directory: str, window: str, mode: str = "") -> None:
    async with asyncio.timeout(LIFETIME_S):
        lessee = Lessee(address, run_id, Path(directory), int(window), mode == "twice")
        (Path(directory) / "lessee.ready").write_text(str(os.getpid()))
        await lessee.run()


asyncio.run(main(*sys.argv[1:]))
