"""Writes a checkpoint's files: each rank its own tensors, one rank the books, in torch's and Megatron's distributed format.

The file of a rank is a row of torch.save streams. Where in it each tensor's own bytes begin is noted in index.json, so that
a reader needs to read neither pickles nor more of a tensor than it wants.
"""

import hashlib
import io
import json
import os
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from baton.checkpoint_files import INDEX, MARKER, SUMS, digest_of, sums_of
from services.trainer.megatron.checkpoint_pieces import Piece


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece in its file."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]
    start: int
    """Of its torch.save stream in the file, which has `length` bytes."""
    length: int
    position: int
    """Of its elements in the file, row by row."""


@dataclass(frozen=True, slots=True)
class RankFile:
    """What one rank wrote."""

    name: str
    bytes: int
    digest: str
    chunks: list[Chunk]


class _Counted:
    """A file that is written only, with the digest and the number of its bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest, self.bytes = file, hashlib.sha256(), 0
        self.error: OSError | None = None
        """What torch.save may have told in words of its own."""

    def write(self, data: Any) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        size = memoryview(data).nbytes
        self.bytes += size
        return size

    def flush(self) -> None:
        self._file.flush()


class _Stream:
    """A part of a readable file as one of its own, for torch's reader of zip archives."""

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def read(self, size: int = -1) -> bytes:
        left = self._length - self._at
        self._file.seek(self._start + self._at)
        data = self._file.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        return self._at

    def tell(self) -> int:
        return self._at


def write_rank_file(pieces: Iterable[Piece], directory: Path, rank: int) -> RankFile:
    """Writes pieces whose tensors have memory of their own, on the CPU. The file is on the disk when it returns.

    Raises OSError if it cannot be written.
    """
    path, chunks = directory / f"__{rank}_0.distcp", []
    with path.open("wb") as file:
        counted = _Counted(file)
        for piece in pieces:
            start, dtype = counted.bytes, str(piece.tensor.dtype).removeprefix("torch.")
            try:
                torch.save(piece.tensor, counted)
            except Exception as error:
                raise counted.error or error from None
            size, length = tuple(piece.tensor.shape), counted.bytes - start
            chunks.append(Chunk(piece.key, dtype, tuple(piece.shape), tuple(piece.offset), size, start, length, 0))
        file.flush()
        os.fsync(file.fileno())
    with path.open("rb") as file:
        chunks = [_located(chunk, file) for chunk in chunks]
    return RankFile(path.name, counted.bytes, counted.digest.hexdigest(), chunks)


def _located(chunk: Chunk, file: IO[bytes]) -> Chunk:
    archive = torch._C.PyTorchFileReader(_Stream(file, chunk.start, chunk.length))
    return replace(chunk, position=chunk.start + archive.get_record_offset("data/0"))


def write_books(files: Sequence[RankFile], directory: Path, marker: dict[str, Any]) -> None:
    """Writes everything but the ranks' files; the marker gets the size of each file, and the sums come last.

    Raises OSError if it cannot be written.
    """
    (directory / INDEX).write_text(json.dumps(_index(files), separators=(",", ":")))
    with (directory / ".metadata").open("wb") as file:
        pickle.dump(_metadata(files), file)
    common = io.BytesIO()  # torch.save tells of a full disk in words of its own
    torch.save({"iteration": marker.get("global_step", 0)}, common)
    (directory / "common.pt").write_bytes(common.getvalue())
    save_config(CheckpointingConfig("torch_dist", 1), str(directory))
    digests = {file.name: file.digest for file in files}
    own = sorted(path for path in directory.iterdir() if path.name not in digests)
    sizes = {file.name: file.bytes for file in files} | {path.name: path.stat().st_size for path in own}
    (directory / MARKER).write_text(json.dumps(marker | {"files": sizes}, indent=1))
    digests |= {path.name: digest_of(path) for path in (*own, directory / MARKER)}
    (directory / SUMS).write_text(sums_of(digests))
    for path in (*own, directory / MARKER, directory / SUMS, directory):
        sync(path)


def sync(path: Path) -> None:
    """Returns when a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _index(files: Sequence[RankFile]) -> dict[str, Any]:
    tensors: dict[str, dict[str, Any]] = {}
    for number, file in enumerate(files):
        for chunk in file.chunks:
            entry = tensors.setdefault(chunk.key, {"dtype": chunk.dtype, "shape": chunk.shape, "chunks": []})
            entry["chunks"].append([chunk.offset, chunk.size, number, chunk.position])
    return {"files": [file.name for file in files], "tensors": tensors}


def _metadata(files: Sequence[RankFile]) -> Metadata:
    """The same for torch's reader, and so for Megatron's."""
    tensors: dict[str, TensorStorageMetadata] = {}
    storage: dict[MetadataIndex, _StorageInfo] = {}
    for file in files:
        for chunk in file.chunks:
            dtype = getattr(torch, chunk.dtype)
            tensor = tensors.setdefault(
                chunk.key, TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(chunk.shape), [])
            )
            tensor.chunks.append(ChunkStorageMetadata(torch.Size(chunk.offset), torch.Size(chunk.size)))
            place = MetadataIndex(chunk.key, torch.Size(chunk.offset), len(tensor.chunks) - 1)
            storage[place] = _StorageInfo(file.name, chunk.start, chunk.length)
    return Metadata(state_dict_metadata=tensors, storage_data=storage)
