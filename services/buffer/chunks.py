"""Chunks: samples as the store keeps them, found by position, and a cache of those that were used last.

A chunk is what one message brought: the SampleBatch without the elements of its arrays (the light part), followed by those
elements, column after column. So the light part of a chunk can be read alone, and elements are never parsed.
"""

import asyncio
import struct
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from baton.api.common.v1 import samples_pb2
from baton.errors import NotFoundError
from baton.samples import RAGGED_COLUMNS, Samples
from services.buffer.keys import RunKeys
from services.buffer.store import Store

RECORD = np.dtype([("count", "<u4"), ("light", "<u4"), ("name", "V16")])
"""One chunk in a list of chunks: its samples, the bytes of its light part, and the random id that names it."""

CACHE_BYTES = 256 * 2**20
"""Decoded chunks kept, so that the ranks of a step, and the steps of a shuffled pass, do not each read them again."""
CHUNKS_PER_READ = 16
"""Bounds one answer of the store: a chunk is at most one gRPC message, 4 MiB."""

_BY_SIZE = sorted(RAGGED_COLUMNS.items(), key=lambda column: -column[1].itemsize)  # keeps elements aligned


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk on its way to the store."""

    name: bytes
    samples: Samples
    light: bytes
    elements: list[bytes]

    @classmethod
    def of(cls, name: bytes, message: samples_pb2.SampleBatch) -> "Chunk":
        """Checks and takes apart a message, which is of no use afterwards. Raises as `Samples.from_proto`."""
        values = {column: getattr(message, column).values for column, _ in _BY_SIZE if message.HasField(column)}
        for column in values:
            getattr(message, column).ClearField("values")
        return cls(name, Samples.from_proto(message, values), message.SerializeToString(), list(values.values()))

    @property
    def record(self) -> bytes:
        """Its entry in a list of chunks."""
        return struct.pack("<II16s", len(self.samples), len(self.light), self.name)

    @property
    def size(self) -> int:
        """Bytes in the store."""
        return len(self.light) + sum(map(len, self.elements))

    def payload(self) -> bytes:
        """What is stored."""
        return b"".join([self.light, *self.elements])


def decode(raw: bytes, light: int) -> Samples:
    """The samples of a stored chunk; arrays are views of `raw`."""
    message = samples_pb2.SampleBatch.FromString(raw[:light])
    values, at, view = {}, light, memoryview(raw)
    for column, dtype in _BY_SIZE:
        lengths = getattr(message, column).lengths
        if lengths:
            end = at + int(np.frombuffer(lengths, "<u4").sum(dtype=np.int64)) * dtype.itemsize
            values[column], at = view[at:end], end
    return Samples.from_proto(message, values)


class Layout:
    """Which chunk holds which position, as far as it was read. Lists of chunks only grow."""

    def __init__(self, key: str) -> None:
        """`key` names the list."""
        self._key = key
        self.records = np.empty(0, RECORD)
        self.ends = np.empty(0, np.int64)

    @property
    def size(self) -> int:
        """Positions covered, from 0."""
        return int(self.ends[-1]) if len(self.ends) else 0

    async def cover(self, store: Store, size: int) -> None:
        """Reads the records that were added since, unless so many positions are covered already."""
        if self.size < size:
            known = len(self.records)
            raw = await store.call("GETRANGE", self._key, known * RECORD.itemsize, -1)
            added = np.frombuffer(raw, RECORD)[len(self.records) - known :]  # another rank may have read some meanwhile
            self.records = np.concatenate([self.records, added])
            self.ends = np.cumsum(self.records["count"], dtype=np.int64)

    def names(self) -> list[bytes]:
        """The ids of all chunks, in position order."""
        return [name.tobytes() for name in self.records["name"]]

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Records of the chunks that hold the positions; for each position which of these it is in, and where."""
        index = np.searchsorted(self.ends, positions, side="right")
        used, which = np.unique(index, return_inverse=True)
        return self.records[used], which, positions - (self.ends - self.records["count"])[index]


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

    async def read(self, run: RunKeys, layout: Layout, positions: np.ndarray) -> Samples:
        """The samples at the positions, in that order. `layout` must cover them."""
        records, which, offsets = layout.locate(positions)
        chunks = await self._load(run, records)
        parts = [chunk.take(offsets[which == i]) for i, chunk in enumerate(chunks)]
        if len(parts) == 1:
            return parts[0]
        by_chunk = np.argsort(which, kind="stable")  # the order in which `parts` holds the positions
        samples = Samples.concat(parts)
        return samples if np.all(np.diff(by_chunk) == 1) else samples.take(np.argsort(by_chunk))

    async def _load(self, run: RunKeys, records: np.ndarray) -> list[Samples]:
        wanted = {record["name"].tobytes(): int(record["light"]) for record in records}
        absent = [name for name in wanted if name not in self._decoded and name not in self._reading]
        for at in range(0, len(absent), CHUNKS_PER_READ):
            some = {name: wanted[name] for name in absent[at : at + CHUNKS_PER_READ]}
            self._reading |= dict.fromkeys(some, asyncio.create_task(self._fetch(run, some)))
        reading = {name: self._reading[name] for name in wanted if name in self._reading}
        found = {name: self._decoded[name][0] for name in wanted if name not in reading}
        for name in found:
            self._decoded.move_to_end(name)
        for name, task in reading.items():  # shielded: another rank may wait for it too
            found[name] = (await asyncio.shield(task))[name]
        return [found[name] for name in wanted]

    async def _fetch(self, run: RunKeys, wanted: dict[bytes, int]) -> dict[bytes, Samples]:
        try:
            raws = await self._store.call("MGET", *map(run.chunk, wanted))
            found = {}
            for (name, light), raw in zip(wanted.items(), raws, strict=True):
                if raw is None:
                    raise gone(run, name)
                found[name] = decode(raw, light)
                self.add(name, found[name], len(raw))
            return found
        finally:
            for name in wanted:
                del self._reading[name]

    async def read_light(self, run: RunKeys, layout: Layout) -> list[samples_pb2.SampleBatch]:
        """The light parts of all chunks of a layout, in order: arrays have lengths, but no elements."""
        commands = [
            ("GETRANGE", run.chunk(record["name"].tobytes()), 0, int(record["light"]) - 1) for record in layout.records
        ]
        raws = await self._store.pipeline(commands)
        for record, raw in zip(layout.records, raws, strict=True):
            if len(raw) != record["light"]:
                raise gone(run, record["name"].tobytes())
        return [samples_pb2.SampleBatch.FromString(raw) for raw in raws]


def gone(run: RunKeys, name: bytes) -> NotFoundError:
    """The error for a chunk that a list names but that the store does not hold."""
    return NotFoundError(f"samples of {run} are gone ({run.chunk(name)}): deleted during the call, or dropped by the store")
