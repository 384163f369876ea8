"""How one RPC becomes the same command on every rank of the torchrun group.

    rank 0: gRPC servicer ──▶ Ranks.execute ──broadcast──▶ every rank: handler ──gather──▶ rank 0: one outcome per rank

Commands are a name and serialized protobuf; nothing is pickled. Rank 0 sends an empty command every HEARTBEAT_S, so that a
rank whose rank 0 is gone finds out within the group's timeout instead of waiting for ever.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import torch
import torch.distributed as dist

from baton import errors
from baton.errors import BatonError, ServiceFaultError

HEARTBEAT_S = 20.0
Handler = Callable[[bytes], bytes]
"""Takes a serialized request, answers with this rank's serialized part of the result."""

log = logging.getLogger(__name__)


class Ranks:
    """The command channel; one per process. `handlers` must be the same on all ranks."""

    def __init__(self, handlers: Mapping[str, Handler], timeout_s: float) -> None:
        """`timeout_s` bounds every wait for the other ranks; it must exceed the longest command."""
        self._handlers = handlers
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self._alone = dist.get_world_size() == 1
        self._executor = ThreadPoolExecutor(1, "commands")  # rank 0: commands run one at a time, off the event loop

    async def execute(self, name: str, request: bytes) -> list[bytes]:
        """Rank 0: runs a command on every rank. Returns their results by rank; raises the first rank's error, but
        rather one that is no DeadlineError."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._lead, name, request)

    async def heartbeat(self) -> None:
        """Rank 0: tells idle ranks that it is alive, until cancelled."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await asyncio.get_running_loop().run_in_executor(self._executor, self._broadcast, b"")

    async def stop(self) -> None:
        """Rank 0: ends `follow` on the other ranks."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._broadcast, b"stop\n")

    def follow(self) -> None:
        """Other ranks: executes what rank 0 sends until it says stop."""
        while True:
            name, _, request = self._broadcast(None).partition(b"\n")
            if name == b"stop":
                return
            if name:
                self._gather(self._outcome(name.decode(), request))

    def _lead(self, name: str, request: bytes) -> list[bytes]:
        self._broadcast(name.encode() + b"\n" + request)
        outcomes = self._gather(self._outcome(name, request))
        failed = [(rank, json.loads(outcome[1:])) for rank, outcome in enumerate(outcomes) if outcome[:1] == b"!"]
        if failed:  # a rank that waited in vain tells less than the one that was waited for
            rank, report = min(failed, key=lambda one: one[1]["kind"] == errors.DeadlineError.__name__)
            kind = getattr(errors, report["kind"], ServiceFaultError)
            raise kind(report["message"] if kind is not ServiceFaultError else f"rank {rank}: {report['message']}")
        return [outcome[1:] for outcome in outcomes]

    def _outcome(self, name: str, request: bytes) -> bytes:
        """b"=" + result, or b"!" + the error as JSON."""
        try:
            return b"=" + self._handlers[name](request)
        except BatonError as error:
            kind, message = type(error).__name__, str(error)
        except Exception as error:  # the boundary between a command and the channel: other ranks must hear of it
            log.exception("command %s failed", name)
            kind, message = ServiceFaultError.__name__, f"{type(error).__name__}: {error}"
        return b"!" + json.dumps({"kind": kind, "message": message}).encode()

    def _broadcast(self, message: bytes | None) -> bytes:
        """Sends (rank 0) or receives (None elsewhere) one message."""
        if self._alone:
            return message
        size = torch.tensor([len(message or b"")], dtype=torch.int64)
        dist.broadcast(size, 0, group=self._group)
        payload = torch.empty(int(size), dtype=torch.uint8)
        if message:
            payload.copy_(torch.frombuffer(bytearray(message), dtype=torch.uint8))
        if len(payload):
            dist.broadcast(payload, 0, group=self._group)
        return bytes(payload.numpy())

    def _gather(self, message: bytes) -> list[bytes]:
        """Every rank's message, on every rank."""
        if self._alone:
            return [message]
        world = dist.get_world_size()
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
        dist.all_gather(sizes, torch.tensor([len(message)], dtype=torch.int64), group=self._group)
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(world)]
        dist.all_gather(parts, padded, group=self._group)
        return [bytes(part[: int(size)].numpy()) for part, size in zip(parts, sizes, strict=True)]
