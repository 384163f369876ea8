"""The digest's sums of a bucket on a GPU: one pass over its memory, in one kernel for all of its parts."""

import torch
import triton
import triton.language as tl

from services.common.weight_sync.digest import BITS, matrix_columns
from services.common.weight_sync.plan import ALIGNMENT, Bucket

TILE_ROWS, TILE_COLUMNS = 64, 128
BLOCK = TILE_ROWS * TILE_COLUMNS
"""Elements that one program of the kernel sums. In a tile's row, sums of 16 bits, weighted by columns, fit into 32."""


@triton.jit
def _weighted(half, rows, columns):  # noqa: ANN001, ANN202
    """Sums of a tile of 16-bit numbers: plain, and weighted by place in the tile."""
    plain = tl.sum(half, axis=1).to(tl.int64)
    weighted = tl.sum(half * columns, axis=1).to(tl.int64)
    return tl.sum(plain), tl.sum(plain * rows + weighted)


@triton.jit
def _kernel(  # noqa: ANN202
    bits, parts, block_part, block_first, sums,  # noqa: ANN001
    WIDE: tl.constexpr, ALIGNED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    part = tl.load(block_part + program)
    first = tl.multiple_of(tl.load(block_first + program), ROWS * COLUMNS)
    offset = tl.multiple_of(tl.load(parts + part * 5), ALIGNED)
    count = tl.load(parts + part * 5 + 1)
    columns = tl.load(parts + part * 5 + 2)
    width = tl.load(parts + part * 5 + 3)
    start = tl.load(parts + part * 5 + 4)
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    place = row * COLUMNS + column
    if first + ROWS * COLUMNS <= count:
        value = tl.load(bits + offset + first + place)
    else:
        value = tl.load(bits + offset + first + place, mask=first + place < count, other=0)
    value = value.to(tl.int32)
    if columns == width:  # of contiguous positions
        rows = (tl.arange(0, ROWS) * COLUMNS).to(tl.int64)
        if WIDE:
            low, low_weighted = _weighted(value & 0xFFFF, rows, column)
            high, high_weighted = _weighted(value >> 16, rows, column)
            plain, weighted = low + (high << 16), low_weighted + (high_weighted << 16)
        else:
            plain, weighted = _weighted(value, rows, column)
        second = 2 * (weighted + (start + first) * plain) + plain
    else:
        element = first + place
        position = start + element // columns * width + element % columns
        plain = tl.sum(tl.sum(value.to(tl.int64), axis=1))
        second = tl.sum(tl.sum(value.to(tl.int64) * (2 * position + 1), axis=1))
    tl.atomic_add(sums + part * 2, plain)
    tl.atomic_add(sums + part * 2 + 1, second)


class BucketSummer:
    """Adds up one bucket's parts, whenever it is asked."""

    def __init__(self, bucket: Bucket, device: torch.device) -> None:
        itemsize = bucket.slots[0].part.dtype.itemsize
        if itemsize not in (2, 4) or any(slot.part.dtype.itemsize != itemsize for slot in bucket.slots):
            raise ValueError(f"parts in a bucket must all be of 2 or of 4 bytes; the first one is {bucket.slots[0].part}")
        rows, block_part, block_first = [], [], []
        for number, slot in enumerate(bucket.slots):
            part, width = slot.part, matrix_columns(slot.part)
            start = part.rows[0] * width + part.columns[0]
            rows.append((slot.offset // itemsize, part.numel, part.size[1], width, start))
            firsts = range(0, part.numel, BLOCK)
            block_part += [number] * len(firsts)
            block_first += firsts
        self._bits = BITS[itemsize]
        self._parts = torch.tensor(rows, dtype=torch.int64, device=device)
        self._block_part = torch.tensor(block_part, dtype=torch.int64, device=device)
        self._block_first = torch.tensor(block_first, dtype=torch.int64, device=device)

    def sum(self, buffer: torch.Tensor, sums: torch.Tensor) -> None:
        """Into `sums` [parts, 2], int64, on the current stream."""
        sums.zero_()
        itemsize = self._bits.itemsize
        bits = buffer[: buffer.numel() // itemsize * itemsize].view(self._bits)
        _kernel[(len(self._block_part),)](
            bits, self._parts, self._block_part, self._block_first, sums, WIDE=itemsize == 4,
            ALIGNED=ALIGNMENT // itemsize, ROWS=TILE_ROWS, COLUMNS=TILE_COLUMNS, num_warps=8,
        )  # fmt: skip
