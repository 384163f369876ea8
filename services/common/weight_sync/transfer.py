"""The two ends of one weight update.

    sender:     gather bucket k -> wire, digest          while bucket k - 1 is on the wire
    receiver:   wire -> digest, load bucket k            while bucket k + 1 is on the wire

Each lane carries one sender's buckets through two buffers. On a GPU nothing waits for the device before the end.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from services.common.weight_sync.digest import WeightsDigest
from services.common.weight_sync.group import BroadcastGroup, settle
from services.common.weight_sync.plan import Bucket, Region, payload_bytes
from services.common.weight_sync.replay import Replay, copy
from services.common.weight_sync.stopwatch import Stopwatch
from services.common.weight_sync.sums import PlanSums


class Pending(Protocol):
    """A bucket on its way."""

    def wait(self) -> None:
        """Until it is there; on a GPU, for what the current stream does next."""


class Wire(Protocol):
    """What carries one sender's buckets to this process, or away from it."""

    transport: str
    """"nccl", "gloo" or "ipc"."""

    def start(self, lane: "Lane", index: int) -> Pending:
        """Moves a bucket between the lane's buffer and the other side."""

    def record(self) -> None:
        """All buckets have moved once; the next time will be the same."""


class BroadcastWire:
    """By a process group."""

    def __init__(self, group: BroadcastGroup, backend: str) -> None:
        self.group, self.transport = group, backend

    def start(self, lane: "Lane", index: int) -> Pending:
        """One broadcast per bucket."""
        return self.group.start(lane.buffers[index])

    def record(self) -> None:
        """Nothing to be gained."""


class NoWire:
    """No receiver needs to be sent anything: all read this process's memory."""

    transport = "ipc"

    def start(self, lane: "Lane", index: int) -> "NoWire":
        """Nothing moves."""
        return self

    def record(self) -> None:
        """Nothing."""

    def wait(self) -> None:
        """Returns."""


class Sink(Protocol):
    """Where a receiver puts what arrives."""

    def load(self, lane: int, index: int, views: Sequence[torch.Tensor]) -> None:
        """Takes the parts of a lane's bucket, each [rows, columns]. The views are of memory that is used again."""

    def record(self) -> None:
        """All was loaded once, and done: the next time will be the same."""


class Lane:
    """One sender's buckets, and the memory through which they go."""

    def __init__(self, buckets: Sequence[Bucket], wire: Wire, device: torch.device, *, staged: bool = False) -> None:
        """`staged`: each bucket has memory of its own, where it stays."""
        self.buckets, self.wire, self.device = buckets, wire, device
        size = max((bucket.nbytes for bucket in buckets), default=0)
        sizes = [bucket.nbytes for bucket in buckets] if staged else [size] * min(2, len(buckets))
        memory = [torch.empty(nbytes, dtype=torch.uint8, device=device) for nbytes in sizes]
        self.buffers = [memory[index % len(memory)][: bucket.nbytes] for index, bucket in enumerate(buckets)]
        self.sums = PlanSums(buckets, self.buffers, device)
        self.bytes = payload_bytes(buckets)
        self.views = [
            [slot.view(buffer) for slot in bucket.slots] for bucket, buffer in zip(buckets, self.buffers, strict=True)
        ]

    def start(self, index: int) -> Pending:
        """Puts a bucket on the wire."""
        return self.wire.start(self, index)

    def record(self) -> None:
        """Everything was done once, and is over: from now on, on a GPU, graphs do it."""
        self.sums.replay.record()
        self.wire.record()


@dataclass(slots=True)
class Transfer:
    """What one end saw."""

    bytes: int
    digest: WeightsDigest
    seconds: dict[str, float]

    def report(self) -> dict[str, Any]:
        """As JSON carries it from a rank to its service."""
        return {"bytes": self.bytes, "digest": self.digest.hexdigest(), "seconds": self.seconds}


class Deadline:
    """Until when, and what ends it before."""

    def __init__(self, timeout_s: float, give_up: threading.Event | None = None) -> None:
        self.at, self.give_up = time.monotonic() + timeout_s, give_up

    def bound(self, lanes: Sequence[Lane]) -> None:
        """Has the lanes' broadcasts end by then."""
        for group in groups_of(lanes):
            group.bound(self.at, self.give_up)

    def settle(self, lanes: Sequence[Lane], device: torch.device) -> None:
        """Waits for the device. Raises DeadlineError."""
        settle(groups_of(lanes), device, self.at, self.give_up)


def groups_of(lanes: Sequence[Lane]) -> list[BroadcastGroup]:
    """The process groups by which lanes go."""
    return [lane.wire.group for lane in lanes if isinstance(lane.wire, BroadcastWire)]


@contextmanager
def leaving_if_broken(groups: Sequence[BroadcastGroup]) -> Iterator[None]:
    """Around a whole update, or what prepares it: whatever breaks it off on this side is told to the other members, who
    would wait for it. The groups are looked at only then."""
    try:
        yield
    except BaseException as error:
        for group in groups:
            group.leave(f"{type(error).__name__}: {error}")
        raise


class Gathering:
    """The sender's side of a lane: collects its regions, which stay where they are, into each bucket."""

    def __init__(self, lane: Lane, regions: Iterable[Region], device: torch.device) -> None:
        """The regions are the plan's parts, in its order."""
        self.lane, self.device = lane, device
        sources = iter(regions)
        pieces = [partial(copy, views, [next(sources).matrix for _ in views]) for views in lane.views]
        self.replay = Replay(pieces, lane.device)  # a copy to the CPU is none that a graph can do


def send(gathering: Gathering, deadline: Deadline) -> Transfer:
    """Sends what the regions hold now."""
    lane, device, watch = gathering.lane, gathering.device, Stopwatch(gathering.device)
    deadline.bound([lane])
    pending: list[Pending] = []
    for index in range(len(lane.buckets)):
        if index >= 2:
            with watch.phase("wire"):
                pending[index - 2].wait()
        with watch.phase("gather"):
            gathering.replay.run(index)
        pending.append(lane.start(index))
        with watch.phase("digest"):  # while it is on its way
            lane.sums.replay.run(index)
    with watch.phase("wire"):
        for sent in pending[-2:]:
            sent.wait()
    deadline.settle([lane], device)
    digest = WeightsDigest()
    lane.sums.add_to(digest)
    transfer = Transfer(lane.bytes, digest, watch.seconds())
    gathering.replay.record()
    lane.record()
    return transfer


def receive(lanes: Sequence[Lane], sink: Sink | None, device: torch.device, deadline: Deadline) -> Transfer:
    """Takes every sender's buckets; with `sink`, puts them there as they come."""
    watch, digest = Stopwatch(device), WeightsDigest()
    deadline.bound(lanes)
    for number, index, views in _arrivals(lanes, watch):
        lane = lanes[number]
        with watch.phase("digest"):
            lane.sums.replay.run(index)
        if sink is not None:
            with watch.phase("load"):
                sink.load(number, index, views)
    deadline.settle(lanes, device)
    for lane in lanes:
        lane.sums.add_to(digest)
    transfer = Transfer(sum(lane.bytes for lane in lanes), digest, watch.seconds())
    for lane in lanes:
        lane.record()
    return transfer


def take_again(lanes: Sequence[Lane], sink: Sink, device: torch.device, deadline: Deadline) -> float:
    """Takes everything a second time, for a sink that compares it. Returns seconds."""
    watch = Stopwatch(device)
    for number, index, views in _arrivals(lanes, watch):
        with watch.phase("verify"):
            sink.load(number, index, views)
    deadline.settle(lanes, device)
    return watch.seconds()["verify"]


def _arrivals(lanes: Sequence[Lane], watch: Stopwatch) -> Iterator[tuple[int, int, list[torch.Tensor]]]:
    """(lane, bucket, its views) as they are there, each while the lane's next bucket is on the wire."""
    pending: dict[int, Pending] = {}
    for index in range(1 + max((len(lane.buckets) for lane in lanes), default=0)):
        arriving, pending = pending, {}
        for number, lane in enumerate(lanes):
            if index < len(lane.buckets):
                pending[number] = lane.start(index)
        for number, bucket in arriving.items():
            with watch.phase("wire"):
                bucket.wait()
            yield number, index - 1, lanes[number].views[index - 1]
