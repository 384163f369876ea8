"""Chunks: samples as the store keeps them, found by position, and a cache of those that were used last.

A chunk is one SampleBatch, the elements of its arrays first (see `baton.wire`): its light part can be read alone.
"""

import asyncio
import os
import struct
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from baton import wire
from baton.api.common.v1 import samples_pb2
from baton.errors import NotFoundError
from baton.samples import Samples
from services.buffer.keys import RunKeys
from services.buffer.store import Store

RECORD = np.dtype([("count", "<u4"), ("light", "<u4"), ("name", "V16")])
"""One chunk in a list of chunks: its samples, the bytes of its light part, and the random id that names it."""

CACHE_BYTES = 256 * 2**20
"""Decoded chunks kept, so that the ranks of a step, and the steps of a shuffled pass, do not each read them again."""
CHUNKS_PER_READ = 4
"""Bounds one answer of the store, which sends nothing of it before it has all: 16 MiB at once take twice the time. A chunk
is at most one gRPC message, 4 MiB."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk on its way to the store."""

    name: bytes
    samples: Samples
    payload: wire.Buffer
    """What is stored."""
    light: int
    """Bytes of its light part."""

    @classmethod
    def of(cls, samples: Samples) -> Self:
        """Samples under a name of their own; their arrays must not change any more."""
        elements, light = wire.encode(samples)
        return cls(os.urandom(16), samples, b"".join([*elements, light]), len(light))

    @classmethod
    def received(cls, message: memoryview) -> Self:
        """A SampleBatch as it came, which is stored without a copy. Raises as `Samples.from_proto`."""
        samples, light = wire.decode_parts(message)
        return cls.of(samples) if light is None else cls(os.urandom(16), samples, message, light)

    @property
    def record(self) -> bytes:
        """Its entry in a list of chunks."""
        return struct.pack("<II16s", len(self.samples), self.light, self.name)

    @property
    def size(self) -> int:
        """Bytes in the store."""
        return len(self.payload)


class Layout:
    """Which chunk holds which position, as far as it was read. Lists of chunks only grow."""

    def __init__(self, key: str) -> None:
        """`key` names the list."""
        self._key = key
        self._count = 0
        self._records = np.empty(64, RECORD)  # longer than they need to be: a list grows by one record a put
        self._ends = np.empty(64, np.int64)

    @property
    def records(self) -> np.ndarray:
        """RECORD [chunks]."""
        return self._records[: self._count]

    @property
    def ends(self) -> np.ndarray:
        """The position after the last of each chunk: int64 [chunks]."""
        return self._ends[: self._count]

    @property
    def size(self) -> int:
        """Positions covered, from 0."""
        return int(self.ends[-1]) if len(self.ends) else 0

    async def cover(self, store: Store, size: int) -> None:
        """Reads the records that were added since, unless so many positions are covered already."""
        if self.size < size:
            known = self._count
            raw = await store.call("GETRANGE", self._key, known * RECORD.itemsize, -1)
            self._append(np.frombuffer(raw, RECORD)[self._count - known :])  # another rank may have read some meanwhile

    def _append(self, added: np.ndarray) -> None:
        before, self._count = self._count, self._count + len(added)
        if self._count > len(self._records):
            more = np.empty(2 * self._count - len(self._records), RECORD)
            self._records = np.concatenate([self._records, more])
            self._ends = np.concatenate([self._ends, np.empty(len(more), np.int64)])
        start = int(self._ends[before - 1]) if before else 0
        self._records[before : self._count] = added
        self._ends[before : self._count] = start + np.cumsum(added["count"], dtype=np.int64)

    def names(self) -> list[bytes]:
        """The ids of all chunks, in position order."""
        return [name.tobytes() for name in self.records["name"]]

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Records of the chunks that hold the positions; for each position which of these it is in, and where."""
        index = np.searchsorted(self.ends, positions, side="right")
        used, which = np.unique(index, return_inverse=True)
        return self.records[used], which, positions - (self.ends[index] - self.records["count"][index])

    def between(self, first: int, end: int) -> tuple[np.ndarray, list[slice]]:
        """Records of the chunks that hold the positions from `first` to before `end`, and what is wanted of each."""
        low, high = np.searchsorted(self.ends, (first, end - 1), side="right")
        records = self.records[low : high + 1]
        start, wanted = int(self.ends[low]) - int(records["count"][0]), []
        for count in records["count"].tolist():
            wanted.append(slice(max(first - start, 0), min(end - start, count)))
            start += count
        return records, wanted


class Chunks:
    """Samples by position, from the store or from the chunks decoded last."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._decoded: OrderedDict[bytes, tuple[Samples, int]] = OrderedDict()
        self._bytes = 0
        self._reading: dict[bytes, asyncio.Task[dict[bytes, Samples]]] = {}  # ranks that need a chunk at once share a read

    def add(self, name: bytes, samples: Samples, size: int) -> None:
        """Keeps a decoded chunk of `size` bytes, in place of those that were not used for longest."""
        if name in self._decoded:  # read back between its Put's two halves
            return
        self._decoded[name] = (samples, size)
        self._bytes += size
        while self._bytes > CACHE_BYTES:
            self._bytes -= self._decoded.popitem(last=False)[1][1]

    async def read(self, run: RunKeys, layout: Layout, positions: np.ndarray) -> list[Samples]:
        """The samples at the positions, in that order, in one or more parts: views where positions are consecutive.

        `layout` must cover them.
        """
        if (np.diff(positions) == 1).all():
            records, wanted = layout.between(int(positions[0]), int(positions[-1]) + 1)
            return [chunk.take(some) for chunk, some in zip(await self._load(run, records), wanted, strict=True)]
        records, which, offsets = layout.locate(positions)
        chunks = await self._load(run, records)
        parts = [chunk.take(offsets[which == i]) for i, chunk in enumerate(chunks)]
        by_chunk = np.argsort(which, kind="stable")  # the order in which `parts` holds the positions
        if np.all(np.diff(by_chunk) == 1):
            return parts
        return [Samples.concat(parts).take(np.argsort(by_chunk))]

    async def _load(self, run: RunKeys, records: np.ndarray) -> list[Samples]:
        wanted = [record["name"].tobytes() for record in records]
        absent = [name for name in wanted if name not in self._decoded and name not in self._reading]
        for at in range(0, len(absent), CHUNKS_PER_READ):
            some = absent[at : at + CHUNKS_PER_READ]
            self._reading |= dict.fromkeys(some, asyncio.create_task(self._fetch(run, some)))
        reading = {name: self._reading[name] for name in wanted if name in self._reading}
        found = {name: self._decoded[name][0] for name in wanted if name not in reading}
        for name in found:
            self._decoded.move_to_end(name)
        for name, task in reading.items():  # shielded: another rank may wait for it too
            found[name] = (await asyncio.shield(task))[name]
        return [found[name] for name in wanted]

    async def _fetch(self, run: RunKeys, wanted: Sequence[bytes]) -> dict[bytes, Samples]:
        try:
            raws = await self._store.call("MGET", *map(run.chunk, wanted))
            found = {}
            for name, raw in zip(wanted, raws, strict=True):
                if raw is None:
                    raise gone(run, name)
                found[name] = wire.decode(memoryview(raw))
                self.add(name, found[name], len(raw))
            return found
        finally:
            for name in wanted:
                del self._reading[name]

    async def read_light(self, run: RunKeys, layout: Layout) -> list[samples_pb2.SampleBatch]:
        """The light parts of all chunks of a layout, in order: arrays have lengths, but no elements."""
        commands = [
            ("GETRANGE", run.chunk(record["name"].tobytes()), -int(record["light"]), -1) for record in layout.records
        ]
        raws = await self._store.pipeline(commands)
        for record, raw in zip(layout.records, raws, strict=True):
            if len(raw) != record["light"]:
                raise gone(run, record["name"].tobytes())
        return [samples_pb2.SampleBatch.FromString(raw) for raw in raws]


def gone(run: RunKeys, name: bytes) -> NotFoundError:
    """The error for a chunk that a list names but that the store does not hold."""
    return NotFoundError(f"samples of {run} are gone ({run.chunk(name)}): deleted during the call, or dropped by the store")
