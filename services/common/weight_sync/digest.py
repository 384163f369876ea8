"""A digest of a model's weights that does not depend on the order of tensors, on how they are parted, or on the device.

Each tensor gives two 64-bit sums over its elements' bits, one weighted by their position in the whole tensor. The digest is
two 64-bit numbers: the sums of all tensors, times odd numbers that are drawn from the tensor's name, type and shape, and one
more number for each tensor. So whoever holds a part computes what it adds where it lies, and the digests of some parts and
of the others add up. It guards against mistakes (a stale, swapped, truncated or reordered tensor), not against forgery.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch

from services.common.weight_sync.plan import Part, as_matrix

_WORD = 1 << 64
LANES = 2
"""The digest's numbers."""

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The whole numbers that elements of so many bytes are read as."""

_RUN = 1 << 16
"""Elements of a contiguous part that are summed as one row."""

_BLOCK = 1 << 20
"""Elements that are widened to 64 bits at a time."""


@dataclass(frozen=True, slots=True)
class Key:
    """What a part's sums are multiplied by, and what comes once for its tensor, each lane by lane and a signed 64-bit
    number."""

    first: tuple[int, ...]
    second: tuple[int, ...]
    constant: tuple[int, ...]

    @classmethod
    def of(cls, part: Part) -> "Key":
        """The tensor's constant comes with the part that has its first element, or is as empty as it is."""
        drawn = blake2b(f"{part.name}|{part.dtype}|{part.shape}".encode(), digest_size=24 * LANES).digest()
        words = [int.from_bytes(drawn[at : at + 8], "little", signed=True) for at in range(0, len(drawn), 8)]
        first, second, constant = (tuple(words[at : at + LANES]) for at in range(0, len(words), LANES))
        is_first = not (part.rows[0] or part.columns[0]) and bool(part.numel or not torch.Size(part.shape).numel())
        odd = (tuple(word | 1 for word in lane) for lane in (first, second))
        return cls(*odd, constant if is_first else (0,) * LANES)


class WeightsDigest:
    """Collects parts in any order."""

    def __init__(self) -> None:
        self._lanes = [0] * LANES

    def add(self, part: Part, first: int, second: int) -> None:
        """Takes a part's sums; see `part_sums`."""
        key = Key.of(part)
        self.add_lanes([a * first + b * second + c for a, b, c in zip(key.first, key.second, key.constant, strict=True)])

    def add_lanes(self, lanes: Sequence[int]) -> None:
        """Takes what some parts add to each of the digest's numbers."""
        self._lanes = [lane + more for lane, more in zip(self._lanes, lanes, strict=True)]

    def add_tensor(self, name: str, tensor: torch.Tensor) -> None:
        """Takes one whole tensor under its Hugging Face name."""
        part = Part.whole(name, tensor.dtype, tensor.shape)
        self.add(part, *part_sums(part, as_matrix(tensor)).tolist())

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        return "".join(f"{lane % _WORD:016x}" for lane in self._lanes)


def joined(*digests: str) -> str:
    """The digest of all parts together, of digests of some each."""
    total = WeightsDigest()
    for digest in digests:
        total.add_lanes([int(digest[at : at + 16], 16) for at in range(0, 16 * LANES, 16)])
    return total.hexdigest()


def part_sums(part: Part, matrix: torch.Tensor) -> torch.Tensor:
    """The two sums [2], int64, which wrap alike everywhere, of a part [rows, columns] on any device."""
    width, bits = matrix_columns(part), BITS[part.dtype.itemsize]
    matrix = matrix.contiguous().view(bits) if part.dtype.itemsize > 1 else matrix.contiguous().view(torch.uint8)
    start = part.rows[0] * width + part.columns[0]
    if part.size[1] != width:
        return _sums(matrix, start, width)
    flat = matrix.view(-1)  # of contiguous positions: rows of a handy length instead
    whole = flat.numel() // _RUN * _RUN
    sums = _sums(flat[whole:].view(1, -1), start + whole, 0)
    return sums + _sums(flat[:whole].view(-1, _RUN), start, _RUN) if whole else sums


def matrix_columns(part: Part) -> int:
    """Columns of the whole tensor's matrix."""
    return torch.Size(part.shape[1:]).numel()


def _sums(bits: torch.Tensor, start: int, stride: int) -> torch.Tensor:
    """Of rows whose first elements are at position `start`, `start + stride`, ..."""
    rows, columns = bits.shape
    sums = torch.zeros(2, dtype=torch.int64, device=bits.device)
    weights = 2 * torch.arange(columns, dtype=torch.int64, device=bits.device) + 1
    step = max(1, _BLOCK // max(columns, 1))
    for first in range(0, rows, step):
        block = bits[first : first + step].long()
        by_row = block.sum(dim=1)
        starts = start + stride * torch.arange(first, first + len(block), dtype=torch.int64, device=bits.device)
        sums[0] += by_row.sum()
        sums[1] += (block * weights).sum() + 2 * (starts * by_row).sum()
    return sums
