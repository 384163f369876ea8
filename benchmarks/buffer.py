"""`make bench-buffer`: how near the buffer comes to its store, what it adds in memory, and what grows with history.

    this process ── gRPC ──▶ services.buffer ──▶ redis-server   (Put, Lease)
    redis-benchmark ───────────────────────────▶ redis-server   (raw: pipelined SET and GET of as many bytes)

Both sides use the same server, by TCP and with its append-only file on, and take turns, so that a machine that slows down
slows both.
Takes about four minutes on two cores, and 5 GB of memory.
"""

import asyncio
import csv
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from buffer_parts import history_cost, memory, relay_choice, streaming_cost
from buffer_samples import samples_of
from report import conclude, note, rounded, run, spread

from baton.clients import BufferClient
from baton.config import RunConfig
from baton.config.services import StoreConfig
from baton.errors import ServiceFaultError
from baton.local.commands import buffer_command
from baton.local.process_tree import descendants
from baton.local.processes import Child, ready_file_probe
from baton.local.store import free_port, ping_probe, prepare_server
from baton.memory import keep_freed_memory

GOAL = 0.6
ROUNDS = 9
EPISODES = 3
"""Filled one after the other in a round."""
LEASES = 10
"""Of the last of them."""
STARTUP_S = 30.0
RAW_S = 120.0
PIPELINE = 16
MICRO_BATCHES = 8
"""Of each rank in a step: one MiB each."""
STREAMS = 4
"""Puts, or data-parallel ranks, at once. redis-benchmark has 50 connections with PIPELINE commands each under way."""


@dataclass(frozen=True, slots=True)
class Size:
    """Samples of one size, and how many a round moves."""

    name: str
    sample_bytes: int
    samples: int
    micro_batch: int

    @property
    def global_batch(self) -> int:
        """A step: MICRO_BATCHES for each rank."""
        return self.micro_batch * MICRO_BATCHES * STREAMS


SIZES = (
    Size("2 KiB", 2048, samples=32_768, micro_batch=512),
    Size("64 KiB", 65_536, samples=2048, micro_batch=16),
)


def raw_rate(port: int, size: Size, command: str) -> float:
    """Requests/s of the store alone; `command` is set or get. As many requests as samples are put, or leased."""
    requests = size.samples * (EPISODES if command == "set" else LEASES)
    words = [
        shutil.which("redis-benchmark") or "valkey-benchmark", "-p", str(port), "-t", command,
        "-d", str(size.sample_bytes), "-P", str(PIPELINE), "-n", str(requests), "-r", str(size.samples), "--csv",
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=RAW_S, check=False)
    if done.returncode:
        raise ServiceFaultError(f"redis-benchmark failed: {done.stderr}; it comes with redis-server")
    (row,) = csv.DictReader(done.stdout.splitlines())
    return float(row["rps"])


async def put_rate(client: BufferClient, run_id: str, size: Size) -> float:
    """Samples/s of STREAMS puts at once, episode after episode, until the last sample is stored."""
    parts = [samples_of(size.samples // STREAMS, size.sample_bytes, name=f"p{part}-") for part in range(STREAMS)]
    sizes = {"global_batch_size": size.global_batch, "micro_batch_size": size.micro_batch}
    spent = 0.0
    for episode in range(EPISODES):
        await client.open_episode(run_id, episode, expected_samples=size.samples, **sizes)
        began = time.perf_counter()
        await asyncio.gather(*(client.put(run_id, episode, part) for part in parts))
        spent += time.perf_counter() - began
        await client.close_episode(run_id, episode)
    return EPISODES * size.samples / spent


async def lease_rate(address: str, run_id: str, size: Size, times: int) -> float:
    """Samples/s of STREAMS ranks, each with a client of its own, that lease all steps of the last episode, so many times."""

    async def rank(number: int, client: BufferClient) -> int:
        count = 0
        for step in range(size.samples // size.global_batch):
            batches = client.lease(
                run_id, EPISODES - 1, pass_index=0, step_index=step, data_parallel_rank=number, data_parallel_size=STREAMS,
                lessee=run_id,
            )  # fmt: skip
            async for batch in batches:
                count += len(batch.samples)
        return count

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(BufferClient(address)) for _ in range(STREAMS)]
        began = time.perf_counter()
        count = 0
        for _ in range(times):
            count += sum(await asyncio.gather(*map(rank, range(STREAMS), clients)))
        spent = time.perf_counter() - began
    if count != times * size.samples:
        raise ServiceFaultError(f"{count} samples were leased instead of {times * size.samples}")
    return count / spent


async def rates(place: "Place", size: Size) -> dict[str, Any]:
    """Raw and ours by turns."""
    found: dict[str, list[float]] = {name: [] for name in ("set", "get", "put", "lease", "lease_cold")}
    for index in range(-1, ROUNDS):  # the first one warms up
        raw, ours, run_id = {}, {}, uuid.uuid4().hex
        for command in ("set", "get"):
            await place.settled()
            raw[command] = await asyncio.to_thread(raw_rate, place.port, size, command)
        async with BufferClient(place.address) as client:
            await place.settled()
            ours["put"] = await put_rate(client, run_id, size)
        await place.settled()
        ours["lease"] = await lease_rate(place.address, run_id, size, LEASES)
        await place.restart_buffer()
        await place.settled()
        ours["lease_cold"] = await lease_rate(place.address, run_id, size, 1)
        note(f"{size.name} round {index}: " + ", ".join(f"{name} {rate:.0f}/s" for name, rate in (raw | ours).items()))
        place.flush()
        if index >= 0:
            for name, rate in (raw | ours).items():
                found[name].append(rate)
    by_round = {
        name: [ours / raw for ours, raw in zip(found[name], found[other], strict=True)]
        for name, other in (("put", "set"), ("lease", "get"), ("lease_cold", "get"))
    }
    ratios = {name: rounded(statistics.median(values)) for name, values in by_round.items()}
    return {
        "ratio": ratios,
        "ratio_by_round": {name: spread(values) for name, values in by_round.items()},
        "rounds": ROUNDS,
    } | {f"{name}_per_s": spread(values) for name, values in found.items()}


class Place:
    """A store and a buffer service of their own."""

    def __init__(self, directory: Path, **services: Any) -> None:
        """`services`: of the run file."""
        self._directory = directory
        self._config = RunConfig.from_mapping({"models": {"policy": {}}, "services": services})
        self.port = free_port()
        self.url = ""
        self.address = ""
        self._store: Child | None = None
        self._buffer: Child | None = None

    async def start(self) -> None:
        self.url, command = prepare_server(StoreConfig(port=self.port), self._directory)
        self._store = Child("store", command, self._directory / "store.log")
        await self._store.wait_ready(ping_probe(self.url, self._store), STARTUP_S)
        await self._start_buffer()

    async def _start_buffer(self) -> None:
        run_file, ready = self._directory / "run.yaml", self._directory / "buffer.ready"
        run_file.write_text("models:\n  policy: {}\n")
        ready.unlink(missing_ok=True)
        command = buffer_command(self._config, run_file, ready, self.url)
        self._buffer = Child("buffer", command, self._directory / "buffer.log")
        self.address = (await self._buffer.wait_ready(ready_file_probe(ready), STARTUP_S))["address"]

    @property
    def buffer_pids(self) -> list[int]:
        """The buffer's process, below its keeper."""
        return descendants(self._buffer.process.pid)

    async def restart_buffer(self) -> None:
        """Empties its caches."""
        await self._buffer.stop()
        await self._start_buffer()

    def redis(self, *command: str) -> str:
        """One command, by redis-cli."""
        words = ["redis-cli", "-p", str(self.port), *command]
        return subprocess.run(words, capture_output=True, text=True, timeout=RAW_S, check=True).stdout

    async def settled(self) -> None:
        """Waits until nothing that was written before takes a core or the disk: the rewriting of the append-only file, and
        what the kernel still holds of it."""
        async with asyncio.timeout(RAW_S):
            while any(f"aof_rewrite_{what}:1" in self.redis("INFO", "persistence") for what in ("in_progress", "scheduled")):
                await asyncio.sleep(0.1)
        await asyncio.to_thread(os.sync)

    def flush(self) -> None:
        """Empties the store, and its append-only file."""
        self.redis("FLUSHALL")

    async def stop(self) -> None:
        for child in (self._buffer, self._store):
            if child is not None:
                await child.stop()


@asynccontextmanager
async def started(**services: Any) -> AsyncIterator[Place]:
    """Both processes; they end with the block."""
    with tempfile.TemporaryDirectory(prefix="bench-buffer-") as directory:
        place = Place(Path(directory), **services)
        try:
            await place.start()
            yield place
        finally:
            await place.stop()


async def measure() -> dict[str, Any]:
    """All parts."""
    async with started() as place:
        parts: dict[str, Any] = {size.name: await rates(place, size) for size in SIZES}
        parts["history"] = await history_cost(place)
        parts["streaming"] = await streaming_cost(place)
        parts["relay choice"] = await relay_choice(place)
        parts["memory"] = await memory(place)
    return parts


def main() -> None:
    """Command line; takes no options."""
    keep_freed_memory()  # as coordinator and trainer do
    parts = run(measure())
    ratios = {f"{name} {size.name}": parts[size.name]["ratio"][name] for size in SIZES for name in parts[size.name]["ratio"]}
    lowest = min(ratio for name, ratio in ratios.items() if not name.startswith("lease_cold"))
    parts = {"ratios": ratios} | parts
    conclude("buffer", lowest, "of the store's own SET or GET rate", goal=GOAL, at_least=True, parts=parts)


if __name__ == "__main__":
    main()
