"""The other ways over the same link that `weight_sync.py` compares with, as it calls them; `weight_sync_sides.py` has their
processes."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from report import note
from weight_sync_services import HERE, TURN_S, Place, started

from baton.errors import DeadlineError, ServiceFaultError
from baton.local.processes import Child
from baton.local.store import free_port

MAKE_S = 300.0
VLLM_S = 300.0


def _command(*arguments: object) -> list[str]:
    return [sys.executable, str(HERE / "weight_sync_sides.py"), *map(str, arguments)]


async def finish(child: Child, limit_s: float) -> None:
    """Waits until a process has done its work, and ends it. Raises its error, or DeadlineError after `limit_s`."""
    deadline = time.monotonic() + limit_s
    try:
        while child.process.poll() is None:
            if time.monotonic() > deadline:
                raise DeadlineError(f"{child.name} did not finish within {limit_s:g} s; see {child.log}")
            await asyncio.sleep(0.1)
        if child.process.returncode:
            child.check()
    finally:
        await child.stop()


async def make_model(place: Place, name: str, shape: Mapping[str, Any]) -> Path:
    """Writes the random model of a shape."""
    directory, begun = place.directory / name, time.monotonic()
    await finish(place.child(f"make-{name}", _command("make", directory, json.dumps(shape)), 0), MAKE_S)
    note(f"{name}: made in {time.monotonic() - begun:.0f} s")
    return directory


@asynccontextmanager
async def bare_broadcasts(place: Place, nbytes: int) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """Two processes, one on each side, which stay: a call broadcasts one flat tensor and tells the slower one's seconds."""
    socket, ready = place.directory / "bare.socket", place.directory / "bare.ready"
    port = free_port()
    commands = [_command("bare", rank, port, nbytes, socket, ready) for rank in (0, 1)]
    async with AsyncExitStack() as stack:
        follower = place.child("bare-1", commands[1], 1)
        stack.push_async_callback(follower.stop)
        await stack.enter_async_context(started(place, "bare-0", commands[0], ready, 0))
        connection = stack.enter_context(Client(str(socket)))
        yield lambda: asyncio.to_thread(_turn, connection)


def _turn(connection: Connection) -> float:
    connection.send_bytes(b"go")
    if not connection.poll(TURN_S):
        raise DeadlineError(f"a bare broadcast gave no answer within {TURN_S:g} s; see bare-0.log and bare-1.log")
    try:
        return json.loads(connection.recv_bytes())
    except EOFError:
        raise ServiceFaultError("a bare broadcast's process has ended; see bare-0.log") from None


async def vllm_updates(place: Place, model: Path, rounds: int) -> list[float]:
    """Seconds of updates by vLLM's own NCCL engine, from start to finish, the first one included."""
    socket, ready, result = (place.directory / f"vllm.{end}" for end in ("socket", "ready", "json"))
    for path in (socket, result):
        path.unlink(missing_ok=True)
    async with started(place, "vllm-sender", _command("vllm-sender", model, socket, ready), ready, 0):
        await finish(place.child("vllm", _command("vllm", model, socket, rounds, result), 1), VLLM_S)
    return json.loads(result.read_text())
