"""What one sender will broadcast: tensors laid into fixed-size buckets, the same way on both sides.

The plan is made once, from the tensor list in the WeightGroup, and replayed at every update.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from baton.api.common.v1 import weights_pb2

ALIGNMENT = 64
"""Every tensor starts at a multiple of this many bytes, so that a view of it is aligned for any type."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor's place in a bucket."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def view(self, bucket: torch.Tensor) -> torch.Tensor:
        """The tensor, as a view of the bucket's bytes."""
        return bucket[self.offset : self.offset + self.nbytes].view(self.dtype).view(self.shape)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Consecutive tensors that travel in one broadcast of `nbytes`."""

    slots: tuple[Slot, ...]
    nbytes: int


def plan_buckets(tensors: Sequence[weights_pb2.WeightTensor], bucket_bytes: int) -> list[Bucket]:
    """Cuts the tensors into buckets of at most `bucket_bytes`; a larger tensor has a bucket of its own."""
    buckets: list[Bucket] = []
    slots: list[Slot] = []
    filled = 0

    def close() -> None:
        nonlocal slots, filled
        if slots:
            buckets.append(Bucket(tuple(slots), filled))
        slots, filled = [], 0

    for tensor in tensors:
        dtype, shape = getattr(torch, tensor.dtype), tuple(tensor.shape)
        nbytes = torch.Size(shape).numel() * dtype.itemsize
        if slots and filled + nbytes > bucket_bytes:
            close()
        slots.append(Slot(tensor.name, dtype, shape, filled, nbytes))
        filled += -(-nbytes // ALIGNMENT) * ALIGNMENT
    close()
    return buckets


def payload_bytes(buckets: Sequence[Bucket]) -> int:
    """Bytes of all tensors, padding not counted."""
    return sum(slot.nbytes for bucket in buckets for slot in bucket.slots)


def describe(shapes: Iterator[tuple[str, tuple[int, ...]]], dtype: torch.dtype) -> list[weights_pb2.WeightTensor]:
    """The wire form of a tensor list that is sent in one dtype."""
    name_of_dtype = str(dtype).removeprefix("torch.")
    return [weights_pb2.WeightTensor(name=name, dtype=name_of_dtype, shape=shape) for name, shape in shapes]
