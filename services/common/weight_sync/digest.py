"""A digest of a model's weights that does not depend on the order of tensors, on how they are parted, or on the device.

Each tensor gives two 64-bit sums over its elements' bits, one weighted by their position in the whole tensor. The sums of
parts add up to the tensor's, so whoever holds a part computes them where it lies. Name, type, shape and sums are hashed
to 128 bits; the digest is the sum of the tensors' hashes. It guards against mistakes (a stale, swapped, truncated or
reordered tensor), not against forgery.
"""

from collections.abc import Sequence
from hashlib import blake2b

import torch

from services.common.weight_sync.plan import Part, as_matrix

_MODULUS = 1 << 128
_WORD = 1 << 64
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The whole numbers that elements of so many bytes are read as."""

_RUN = 1 << 16
"""Elements of a contiguous part that are summed as one row."""

_BLOCK = 1 << 20
"""Elements that are widened to 64 bits at a time."""


class WeightsDigest:
    """Collects parts in any order."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str, tuple[int, ...]], list[int]] = {}

    def add(self, part: Part, first: int, second: int) -> None:
        """Takes a part's sums; see `part_sums`."""
        sums = self._sums.setdefault((part.name, str(part.dtype), part.shape), [0, 0])
        sums[0] += first
        sums[1] += second

    def add_tensor(self, name: str, tensor: torch.Tensor) -> None:
        """Takes one whole tensor under its Hugging Face name."""
        part = Part.whole(name, tensor.dtype, tensor.shape)
        self.add(part, *part_sums(part, as_matrix(tensor)).tolist())

    def table(self) -> list[Sequence]:
        """All sums, as JSON can carry them."""
        return [[*key, first % _WORD, second % _WORD] for key, (first, second) in self._sums.items()]

    def merge(self, table: Sequence[Sequence]) -> None:
        """Adds another's table, of other parts."""
        for name, dtype, shape, first, second in table:
            sums = self._sums.setdefault((name, dtype, tuple(shape)), [0, 0])
            sums[0] += first
            sums[1] += second

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        total = 0
        for (name, dtype, shape), (first, second) in self._sums.items():
            text = f"{name}|{dtype}|{shape}|{first % _WORD}|{second % _WORD}"
            total += int.from_bytes(blake2b(text.encode(), digest_size=16).digest(), "big")
        return f"{total % _MODULUS:032x}"


def joined(*digests: str) -> str:
    """The digest of all tensors together, of digests of some each."""
    return f"{sum(int(digest, 16) for digest in digests) % _MODULUS:032x}"


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
