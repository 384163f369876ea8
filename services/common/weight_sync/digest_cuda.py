"""The digest's sums of a bucket on a GPU: one pass over its memory, in one kernel for all of its parts.

The kernel reads as fast as the memory gives, with few instructions: next to it, tensors are sent and copied.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from services.common.weight_sync.digest import BITS, matrix_columns
from services.common.weight_sync.plan import ALIGNMENT, Bucket

WARPS = 8

TILE_BYTES = WARPS * 32 * 16
"""Read at once by one program: 16 bytes by each thread, the most that one instruction loads."""

TILES = 16
"""Summed by one program, at most: few enough for a bucket of 37 MiB to keep a whole GPU busy, with 300 programs. More than
256 could overflow: the largest number of 16 bits in each tile, times the tile's, gives 65535 * (0 + ... + 255), just below
2^31. What is signed is half as large."""

UNROLL = 8
"""Tiles that the loop takes together, so that several loads are under way."""


@triton.jit
def _halves(value, WIDE: tl.constexpr):  # noqa: ANN001, ANN202
    """The lower 16 bits without a sign and the upper ones with it; of 16 bits, all of them and none."""
    if WIDE:
        return value & 0xFFFF, value >> 16
    else:
        return value, tl.zeros_like(value)


@triton.jit
def _kernel(  # noqa: ANN202
    bits, runs, sums,  # noqa: ANN001
    WIDE: tl.constexpr, SLICED: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Adds up one run. A lane has the same place in all tiles. It adds up its elements, plain and times the tile's number,
    in 32 bits, and only at the end in 64. In slices, positions also jump by `gap` between rows, so there it counts rows."""
    run = runs + tl.program_id(0) * 7
    part, count, position = tl.load(run), tl.load(run + 2).to(tl.int32), tl.load(run + 3)
    columns, column, gap = tl.load(run + 4).to(tl.int32), tl.load(run + 5).to(tl.int32), tl.load(run + 6)
    place = tl.arange(0, TILE)
    tile = bits + tl.multiple_of(tl.load(run + 1), ALIGNED) + place
    whole = count // TILE
    rest = count - whole * TILE  # loaded with the padding behind it: a mask by single lanes would make single loads
    value = tl.load(tile + whole * TILE, mask=place < tl.cdiv(rest, ALIGNED) * ALIGNED, other=0)
    value = tl.where(place < rest, value, 0).to(tl.int32)
    low, high = _halves(value, WIDE)
    low_by_tile, high_by_tile = low * whole, high * whole
    by_row = value.to(tl.int64) * ((column + whole * TILE + place) // columns) if SLICED else 0
    for number in tl.range(whole, loop_unroll_factor=UNROLL):
        value = tl.load(tile + number * TILE).to(tl.int32)
        next_low, next_high = _halves(value, WIDE)
        low += next_low
        high += next_high
        low_by_tile += next_low * number
        high_by_tile += next_high * number
        if SLICED:
            by_row += value.to(tl.int64) * ((column + number * TILE + place) // columns)
    each = low.to(tl.int64) + (high.to(tl.int64) << 16)
    by_tile = low_by_tile.to(tl.int64) + (high_by_tile.to(tl.int64) << 16)
    plain = tl.sum(each)
    weighted = tl.sum(each * place + by_tile * TILE)
    if SLICED:
        weighted += tl.sum(by_row) * gap
    tl.atomic_add(sums + part * 2, plain, sem="relaxed")
    tl.atomic_add(sums + part * 2 + 1, 2 * weighted + (2 * position + 1) * plain, sem="relaxed")


class BucketSummer:
    """Adds up one bucket's parts, whenever it is asked."""

    def __init__(self, bucket: Bucket, device: torch.device) -> None:
        itemsize = bucket.slots[0].part.dtype.itemsize
        if itemsize not in (2, 4) or any(slot.part.dtype.itemsize != itemsize for slot in bucket.slots):
            raise ValueError(f"parts in a bucket must all be of 2 or of 4 bytes; the first one is {bucket.slots[0].part}")
        self._bits = BITS[itemsize]
        self._tile = TILE_BYTES // itemsize
        runs = list(_runs(bucket, TILES * self._tile))
        self._launches = []
        for sliced in (False, True):  # where no row has a gap, nothing is divided
            chosen = [run for run in runs if (run[-1] > 0) == sliced]
            if chosen:
                self._launches.append((sliced, torch.tensor(chosen, dtype=torch.int64, device=device)))

    def sum(self, buffer: torch.Tensor, sums: torch.Tensor) -> None:
        """Into `sums` [parts, 2], int64, on the current stream. The buffer has the bucket's padding, too."""
        sums.zero_()
        itemsize = self._bits.itemsize
        bits = buffer[: buffer.numel() // itemsize * itemsize].view(self._bits)
        for sliced, runs in self._launches:
            _kernel[(len(runs),)](
                bits, runs, sums, WIDE=itemsize == 4, SLICED=sliced, ALIGNED=ALIGNMENT // itemsize,
                TILE=self._tile, UNROLL=1 if sliced else UNROLL, num_warps=WARPS,
            )  # fmt: skip


def _runs(bucket: Bucket, size: int) -> Iterator[tuple[int, ...]]:
    """What each program sums: the part's number; where its elements are in the bucket, and how many; the first one's
    position; the part's columns, the first one's column among them, and the positions left out between rows."""
    for number, slot in enumerate(bucket.slots):
        part, width, (_, columns) = slot.part, matrix_columns(slot.part), slot.part.size
        for first in range(0, part.numel, size):
            row, column = divmod(first, columns)
            position = (part.rows[0] + row) * width + part.columns[0] + column
            place = slot.offset // part.dtype.itemsize + first
            yield number, place, min(size, part.numel - first), position, columns, column, width - columns
