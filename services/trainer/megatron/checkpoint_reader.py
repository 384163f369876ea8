"""Reads pieces out of a checkpoint: of every tensor only the bytes of the rectangle that is wanted, to where it is kept.

All that is wanted is looked up before the first byte is read, so that a checkpoint of another model changes nothing.
"""

import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from baton.checkpoint_files import INDEX, MARKER, SUMS, digest_of, read_marker, read_sums
from baton.errors import InvalidRequestError, NotFoundError
from services.trainer.megatron.checkpoint_pieces import Piece

BUFFER_BYTES = 32 << 20
"""Memory that a read may take besides where the tensors are kept."""
Corner = tuple[int, ...]


@dataclass(slots=True)
class ReadReport:
    """What one rank read."""

    kept_bytes: int = 0
    """Of the pieces that were filled."""
    read_bytes: int = 0
    """From files, the books too."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Part:
    """What one chunk of a file has of a piece: the rectangle in the chunk, and its corner in the piece."""

    file: str
    position: int
    chunk: Corner
    low: Corner
    size: Corner
    corner: Corner


class _Tensor:
    """A whole tensor's chunks."""

    def __init__(self, entry: dict[str, Any], files: Sequence[str]) -> None:
        self.dtype: torch.dtype = getattr(torch, entry["dtype"])
        self.shape = tuple(entry["shape"])
        self._files, self._chunks = files, entry["chunks"]
        self._low = np.array([chunk[0] for chunk in self._chunks], np.int64)
        self._size = np.array([chunk[1] for chunk in self._chunks], np.int64)

    def parts(self, offset: Corner, size: Corner) -> Iterator[_Part]:
        """What the chunks have of a rectangle of the whole tensor."""
        start = np.array(offset)
        low = np.maximum(self._low, start)
        high = np.minimum(self._low + self._size, start + np.array(size))
        for number in np.flatnonzero((low < high).all(1)):
            _, chunk, file, position = self._chunks[number]
            yield _Part(
                self._files[file], position, tuple(chunk), _plain(low[number] - self._low[number]),
                _plain(high[number] - low[number]), _plain(low[number] - start),
            )  # fmt: skip


class CheckpointReader:
    """A whole checkpoint, open to be read."""

    def __init__(self, path: Path) -> None:
        """Raises NotFoundError if there is none or a file of it is missing, InvalidRequestError if it is torn or damaged."""
        self.path, self.marker = path, read_marker(path)
        for name, size in self.marker["files"].items():
            file = path / name
            if not file.is_file():
                raise NotFoundError(f"{path} lacks its file {name}; bring it back, or take another checkpoint")
            if file.stat().st_size != size:
                raise InvalidRequestError(
                    f"{file} has {file.stat().st_size} bytes, and {size} were written: it is torn; take another checkpoint"
                )
        if digest_of(path / INDEX) != read_sums(path).get(INDEX):
            raise InvalidRequestError(f"{path / INDEX} is damaged, as `baton ckpt verify` says too; take another checkpoint")
        index = json.loads((path / INDEX).read_text())
        self._tensors = {name: _Tensor(entry, index["files"]) for name, entry in index["tensors"].items()}
        self._books = sum((path / name).stat().st_size for name in (INDEX, MARKER, SUMS))
        self._open: dict[str, int] = {}

    @property
    def tensors(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and number format of each whole tensor."""
        return {name: (tensor.shape, tensor.dtype) for name, tensor in self._tensors.items()}

    @torch.no_grad()
    def read(self, pieces: Sequence[Piece]) -> ReadReport:
        """Fills the pieces. Raises InvalidRequestError, before any is filled, if the checkpoint does not have them all."""
        report, started = ReadReport(read_bytes=self._books), time.perf_counter()
        plans = [(piece, *self._planned(piece)) for piece in pieces]
        try:
            for piece, parts, dtype, is_whole in plans:
                if not is_whole:
                    piece.tensor.zero_()
                for part in parts:
                    report.read_bytes += self._fill(piece.tensor, part, dtype)
                report.kept_bytes += piece.tensor.nbytes
        finally:
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()
        report.seconds = time.perf_counter() - started
        return report

    def _planned(self, piece: Piece) -> tuple[list[_Part], torch.dtype, bool]:
        """Where the piece is, in which number format, and whether all of it is there."""
        name = self._source(piece)
        stored = self._tensors[name]
        fixed = [axis for axis in range(len(piece.shape)) if axis != piece.padded]
        if len(stored.shape) != len(piece.shape) or any(stored.shape[axis] != piece.shape[axis] for axis in fixed):
            raise InvalidRequestError(
                f"{self.path} is a checkpoint of another model: {name} is {stored.shape} there, {tuple(piece.shape)} here"
            )
        parts = list(stored.parts(piece.offset, tuple(piece.tensor.shape)))
        there = [min(low + size, end) - min(low, end)
                 for low, size, end in zip(piece.offset, piece.tensor.shape, stored.shape, strict=True)]  # fmt: skip
        if sum(_count(part.size) for part in parts) != _count(there):
            raise InvalidRequestError(f"{self.path} lacks a part of {name}; a rank's file was left out; take another one")
        return parts, stored.dtype, _count(there) == piece.tensor.numel()

    def _source(self, piece: Piece) -> str:
        names = [name for name in (piece.key, *piece.also) if name in self._tensors]
        if not names:
            raise InvalidRequestError(
                f"{self.path} has no tensor {piece.key}: it is a checkpoint of another model; `baton ckpt inspect` shows it"
            )
        return next((name for name in names if self._tensors[name].dtype is torch.float32), names[0])

    def _fill(self, target: torch.Tensor, part: _Part, dtype: torch.dtype) -> int:
        """Copies one part to its place; returns the bytes that were read."""
        place = target[tuple(slice(low, low + size) for low, size in zip(part.corner, part.size, strict=True))]
        read = 0
        for low, size in _blocks(part.size, dtype.itemsize):
            block = place[tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))]
            direct = block.is_cpu and block.dtype is dtype and block.is_contiguous()
            values = block if direct else torch.empty(size, dtype=dtype, device="cpu")
            memory = memoryview(values.view(-1).view(torch.uint8).numpy())
            for start, length in _runs(part, low, size):
                taken = length * dtype.itemsize
                self._pread(part.file, part.position + start * dtype.itemsize, memory[:taken])
                memory = memory[taken:]
            read += values.nbytes
            if not direct:
                block.copy_(values)
        return read

    def _pread(self, name: str, position: int, memory: memoryview) -> None:
        if name not in self._open:
            self._open[name] = os.open(self.path / name, os.O_RDONLY)
        while memory:
            count = os.preadv(self._open[name], [memory], position)
            if not count:
                raise InvalidRequestError(f"{self.path / name} ends too early: it is torn; take another checkpoint")
            memory, position = memory[count:], position + count


def _blocks(size: Corner, itemsize: int) -> Iterator[tuple[Corner, Corner]]:
    """Corner and size of rectangles that fit into the buffer and make up one of this size, in the order of its elements."""
    axis = next((number for number, extent in enumerate(size) if extent > 1), 0)
    row = _count(size[axis + 1 :]) * itemsize
    step = max(1, BUFFER_BYTES // row)
    before, after = (0,) * axis, (0,) * (len(size) - axis - 1)
    for low in range(0, size[axis], step):
        yield (*before, low, *after), (*size[:axis], min(step, size[axis] - low), *size[axis + 1 :])


def _runs(part: _Part, low: Corner, size: Corner) -> Iterator[tuple[int, int]]:
    """Where in the chunk's elements the rectangle's consecutive ones begin, and how many they are; `low` is in the part."""
    begin = [a + b for a, b in zip(part.low, low, strict=True)]
    strides = [_count(part.chunk[axis + 1 :]) for axis in range(len(size))]
    axis = len(size) - 1
    while axis > 0 and size[axis] == part.chunk[axis]:
        axis -= 1
    length, first = _count(size[axis:]), sum(a * stride for a, stride in zip(begin, strides, strict=True))
    for outer in itertools.product(*map(range, size[:axis])):
        yield first + sum(a * stride for a, stride in zip(outer, strides, strict=False)), length


def _count(size: Sequence[int]) -> int:
    return int(np.prod(size, dtype=np.int64))


def _plain(values: np.ndarray) -> Corner:
    return tuple(int(value) for value in values)
