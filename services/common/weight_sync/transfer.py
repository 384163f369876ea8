"""The two ends of one weight update over one BroadcastGroup."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from services.common.weight_sync.digest import WeightsDigest
from services.common.weight_sync.group import BroadcastGroup
from services.common.weight_sync.plan import Bucket, payload_bytes


@dataclass(slots=True)
class Transfer:
    """What one end saw: digest and bytes of the tensors, and seconds per phase (`gather`, `wire`, `load`, `digest`)."""

    bytes: int = 0
    digest: WeightsDigest = field(default_factory=WeightsDigest)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("gather", "wire", "load", "digest"), 0.0))

    def timed(self, phase: str) -> "_Timer":
        """Adds the duration of a `with` block to a phase."""
        return _Timer(self.seconds, phase)


class _Timer:
    def __init__(self, seconds: dict[str, float], phase: str) -> None:
        self._seconds, self._phase = seconds, phase

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._phase] += time.perf_counter() - self._start


def send(
    group: BroadcastGroup, buckets: Sequence[Bucket], tensors: Iterator[tuple[str, torch.Tensor]], device: torch.device
) -> Transfer:
    """Broadcasts `tensors`, which must come in the plan's order. Converts each to its slot's dtype on the way."""
    transfer = Transfer(payload_bytes(buckets))
    buffer = torch.zeros(max(bucket.nbytes for bucket in buckets), dtype=torch.uint8, device=device)
    for bucket in buckets:
        for slot in bucket.slots:
            with transfer.timed("gather"):
                name, tensor = next(tensors)
                if name != slot.name:
                    raise ValueError(f"the plan wants {slot.name} next, but the model gave {name}")
                slot.view(buffer).copy_(tensor)
            with transfer.timed("digest"):
                transfer.digest.add(slot.name, slot.view(buffer))
        with transfer.timed("wire"):
            group.broadcast(buffer[: bucket.nbytes])
    return transfer


def receive(
    group: BroadcastGroup,
    buckets: Sequence[Bucket],
    load: Callable[[list[tuple[str, torch.Tensor]]], None],
    device: torch.device,
) -> Transfer:
    """Hands every bucket's tensors to `load` as they arrive. Each bucket has memory of its own: the engine may keep views
    of a fused layer's parts until the last of them has come."""
    transfer = Transfer(payload_bytes(buckets))
    for bucket in buckets:
        buffer = torch.empty(bucket.nbytes, dtype=torch.uint8, device=device)
        with transfer.timed("wire"):
            group.broadcast(buffer)
        tensors = [(slot.name, slot.view(buffer)) for slot in bucket.slots]
        with transfer.timed("digest"):
            for name, tensor in tensors:
                transfer.digest.add(name, tensor)
        with transfer.timed("load"):
            load(tensors)
    return transfer
