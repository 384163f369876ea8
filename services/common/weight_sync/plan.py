"""What one sender sends: rectangles of tensors, laid into fixed-size buckets, the same way on both sides.

The plan is made once, when the group is opened, and replayed at every update.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from baton.api.common.v1 import weights_pb2

ALIGNMENT = 64
"""Every part starts at a multiple of this many bytes, so that a view of it is aligned for any type."""


@dataclass(frozen=True, slots=True)
class Part:
    """A rectangle of one tensor, seen as a matrix: a vector is one column, a number is one by one."""

    name: str
    """Hugging Face name."""
    dtype: torch.dtype
    """As it travels."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    rows: tuple[int, int]
    columns: tuple[int, int]

    @classmethod
    def whole(cls, name: str, dtype: torch.dtype, shape: Sequence[int]) -> "Part":
        """All of a tensor."""
        rows, columns = matrix_size(shape)
        return cls(name, dtype, tuple(shape), (0, rows), (0, columns))

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the rectangle."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    @property
    def numel(self) -> int:
        """Elements of the rectangle."""
        rows, columns = self.size
        return rows * columns

    @property
    def nbytes(self) -> int:
        """Bytes of the rectangle as it travels."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Region:
    """Where this process holds a part: a matrix [rows, columns], a view of a parameter, of whatever type."""

    part: Part
    matrix: torch.Tensor


def matrix_size(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a tensor seen as a matrix."""
    rows = shape[0] if shape else 1
    return rows, torch.Size(shape).numel() // rows if rows else 1


def as_matrix(tensor: torch.Tensor) -> torch.Tensor:
    """The view of a tensor that its parts are rectangles of."""
    if tensor.dim() < 2:
        return tensor.view(-1, 1)
    return tensor if tensor.dim() == 2 else tensor.view(matrix_size(tensor.shape))


def cut(regions: Sequence[Region], limit: int) -> Iterator[Region]:
    """The same regions, cut between rows so that none is larger than `limit` bytes, unless one row is. Empty ones are left
    out."""
    for region in regions:
        part, (rows, columns) = region.part, region.part.size
        if not part.numel:
            continue
        step = max(1, limit // (columns * part.dtype.itemsize))
        for start in range(0, rows, step):
            end = min(rows, start + step)
            piece = replace(part, rows=(part.rows[0] + start, part.rows[0] + end))
            yield Region(piece, region.matrix[start:end])


@dataclass(frozen=True, slots=True)
class Slot:
    """One part's place in a bucket."""

    part: Part
    offset: int

    def view(self, bucket: torch.Tensor) -> torch.Tensor:
        """The part [rows, columns], as a view of the bucket's bytes."""
        return bucket[self.offset : self.offset + self.part.nbytes].view(self.part.dtype).view(self.part.size)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Consecutive parts that travel together, in `nbytes`."""

    slots: tuple[Slot, ...]
    nbytes: int


def plan_buckets(parts: Sequence[Part], bucket_bytes: int) -> list[Bucket]:
    """Lays the parts into buckets of at most `bucket_bytes`; a larger part has a bucket of its own."""
    buckets: list[Bucket] = []
    slots: list[Slot] = []
    filled = 0
    for part in parts:
        if slots and filled + part.nbytes > bucket_bytes:
            buckets.append(Bucket(tuple(slots), filled))
            slots, filled = [], 0
        slots.append(Slot(part, filled))
        filled += -(-part.nbytes // ALIGNMENT) * ALIGNMENT
    if slots:
        buckets.append(Bucket(tuple(slots), filled))
    return buckets


def payload_bytes(buckets: Sequence[Bucket]) -> int:
    """Bytes of all parts, padding not counted."""
    return sum(slot.part.nbytes for bucket in buckets for slot in bucket.slots)


def describe(parts: Sequence[Part], sender: weights_pb2.WeightSender) -> None:
    """Writes the parts, and the tensors that they are of, into the message."""
    numbers: dict[str, int] = {}
    for part in parts:
        if part.name not in numbers:
            numbers[part.name] = len(numbers)
            sender.tensors.add(name=part.name, dtype=str(part.dtype).removeprefix("torch."), shape=part.shape)
        sender.parts.add(
            tensor=numbers[part.name], row_start=part.rows[0], row_end=part.rows[1],
            column_start=part.columns[0], column_end=part.columns[1],
        )  # fmt: skip


def described(sender: weights_pb2.WeightSender) -> list[Part]:
    """The parts out of the message."""
    tensors = [(tensor.name, getattr(torch, tensor.dtype), tuple(tensor.shape)) for tensor in sender.tensors]
    return [
        Part(*tensors[part.tensor], (part.row_start, part.row_end), (part.column_start, part.column_end))
        for part in sender.parts
    ]


def payload_of(group: weights_pb2.WeightGroup) -> int:
    """Bytes that a group's senders send to each receiver."""
    return sum(part.nbytes for sender in group.senders for part in described(sender))
