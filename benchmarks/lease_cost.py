"""`make bench-lease-cost`: what a MiB that is leased costs each process, and what of that is gRPC's.

    this process ── gRPC ──▶ services.buffer, samples in its cache
    this process ── gRPC ──▶ a server that streams bytes of as many messages, and does nothing else

The bare one by TCP and by a socket of this machine. Processor time, which others on the machine disturb less than the clock.
"""

import asyncio
import itertools
import os
import resource
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
from buffer import SIZES, STARTUP_S, STREAMS, Size, lease_rate, put_rate, started
from report import conclude, note, rounded, run

from baton.clients import BufferClient
from baton.local.process_tree import descendants
from baton.local.processes import Child, ready_file_probe
from baton.memory import keep_freed_memory
from services.common.server import Server

GOAL = 2.0
"""Times the processor time of the bare stream, both ends together."""
ROUNDS = 5
"""The cheapest counts."""
MIB = 2**20
MESSAGES = 1024
"""Of a MiB each, in a round."""
DIFFERENT = 128
"""Messages that the bare server goes round in, more than the processor's caches hold."""
CALL = "/bench.Bare/Stream"
USER, SYSTEM = 11, 12
"""Positions in /proc/PID/stat, counted after the command's closing bracket; see proc_pid_stat(5)."""


async def serve_bare(listen: str, ready: Path) -> None:
    """The bare server: as many messages as the request says, each joined of a head and its bytes, as a lease's are."""
    blocks = [os.urandom(MIB) for _ in range(DIFFERENT)]

    async def stream(request: bytes, _: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        for block in itertools.islice(itertools.cycle(blocks), int(request)):
            yield b"".join([b"head", block])

    server = Server([], listen)
    method = grpc.unary_stream_rpc_method_handler(stream)
    server.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Bare", {"Stream": method}),))
    await server.run(ready)


def processor_s(pids: Sequence[int]) -> float:
    """Seconds that the processes have had a core; of this one with no pid."""
    if not pids:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime
    rows = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(row[USER]) + int(row[SYSTEM]) for row in rows) / os.sysconf("SC_CLK_TCK")


async def cheapest(name: str, work: Callable[[], Awaitable[Any]], server: Sequence[int]) -> dict[str, float]:
    """Milliseconds per MiB in the server, here, and together, of the cheapest round; `work` moves MESSAGES of them."""
    await work()
    rounds = []
    for _ in range(ROUNDS):
        before = processor_s(server), processor_s(())
        await work()
        after = processor_s(server), processor_s(())
        there, here = (1e3 * (now - then) / MESSAGES for then, now in zip(before, after, strict=True))
        rounds.append({"server": rounded(there), "client": rounded(here), "both": rounded(there + here)})
    best = min(rounds, key=lambda row: row["both"])
    note(f"{name}: {best} ms per MiB")
    return best


async def bare(name: str, listen: str) -> dict[str, float]:
    """gRPC alone."""
    with tempfile.TemporaryDirectory(prefix="bench-bare-") as directory:
        ready = Path(directory) / "ready"
        server = Child("bare", [sys.executable, __file__, listen, str(ready)], Path(directory) / "log")
        try:
            address = (await server.wait_ready(ready_file_probe(ready), STARTUP_S))["address"]
            async with grpc.aio.insecure_channel(address) as channel:

                async def rank() -> None:
                    async for _ in channel.unary_stream(CALL)(b"%d" % (MESSAGES // STREAMS), wait_for_ready=True):
                        pass

                async def work() -> None:
                    await asyncio.gather(*(rank() for _ in range(STREAMS)))

                return await cheapest(name, work, descendants(server.process.pid))
        finally:
            await server.stop()


async def lease(name: str, size: Size, **services: Any) -> dict[str, float]:
    """Through the buffer."""
    async with started(**services) as place, BufferClient(place.address) as client:
        await put_rate(client, "run", size)
        await place.settled()
        times = MESSAGES * MIB // (size.samples * size.sample_bytes)
        return await cheapest(name, lambda: lease_rate(place.address, "run", size, times), place.buffer_pids)


async def measure() -> dict[str, Any]:
    """All parts."""
    parts = {
        "bare by TCP": await bare("bare by TCP", "127.0.0.1:0"),
        "bare by a socket": await bare("bare by a socket", f"unix-abstract:baton-bench-{os.getpid()}"),
    }
    for size in SIZES:
        name = f"lease {size.name} by TCP"
        parts[name] = await lease(name, size)
    return parts


def main() -> None:
    """Command line; takes no options, but for the bare server's own."""
    keep_freed_memory()
    if arguments := sys.argv[1:]:
        asyncio.run(serve_bare(arguments[0], Path(arguments[1])))
        return
    parts = run(measure())
    ratio = parts["lease 64 KiB by TCP"]["both"] / parts["bare by TCP"]["both"]
    conclude("lease cost", ratio, "times the bare stream's processor time", goal=GOAL, at_least=False, parts=parts)


if __name__ == "__main__":
    main()
