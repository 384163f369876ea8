"""Reading samples by position: the layout of an episode's chunks, and a cache of decoded ones."""

import asyncio
import struct
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from baton.api.common.v1 import samples_pb2
from baton.errors import NotFoundError
from baton.samples import Samples
from services.buffer.keys import EpisodeKeys
from services.buffer.store import Store

RECORD = np.dtype([("count", "<u4"), ("name", "V16")])
"""One chunk in an episode's list: the number of its samples, and the random id that names it. `record` writes one."""

CACHE_BYTES = 256 * 2**20
"""Decoded chunks kept, so that the ranks of a step, and the steps of a shuffled pass, do not each read them again."""
CHUNKS_PER_READ = 16
"""Bounds one answer of the store: a chunk is at most one gRPC message, 4 MiB."""


def record(count: int, name: bytes) -> bytes:
    """The entry of a chunk in its episode's list."""
    return struct.pack("<I16s", count, name)


class Layout:
    """Which chunk holds which position, as far as it was read."""

    def __init__(self) -> None:
        self._records = np.empty(0, RECORD)
        self._ends = np.empty(0, np.int64)

    @property
    def size(self) -> int:
        """Positions covered, from 0."""
        return int(self._ends[-1]) if len(self._ends) else 0

    async def extend(self, store: Store, keys: EpisodeKeys) -> None:
        """Reads the records that were added since."""
        raw = await store.call("GETRANGE", keys.chunks, len(self._records) * RECORD.itemsize, -1)
        self._records = np.concatenate([self._records, np.frombuffer(raw, RECORD)])
        self._ends = np.cumsum(self._records["count"], dtype=np.int64)

    def names(self) -> list[bytes]:
        """The ids of all chunks, in position order."""
        return [record.tobytes() for record in self._records["name"]]

    def locate(self, positions: np.ndarray) -> tuple[list[bytes], np.ndarray, np.ndarray]:
        """The chunks that hold the positions, and for each position which of these chunks it is in, and where."""
        index = np.searchsorted(self._ends, positions, side="right")
        used, which = np.unique(index, return_inverse=True)
        names = [record.tobytes() for record in self._records["name"][used]]
        return names, which, positions - (self._ends - self._records["count"])[index]


class ChunkCache:
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

    async def read(self, keys: EpisodeKeys, layout: Layout, positions: np.ndarray) -> Samples:
        """The samples at the positions, in that order. `layout` must cover them."""
        names, which, offsets = layout.locate(positions)
        chunks = await self._load(keys, names)
        parts = [chunk.take(offsets[which == i]) for i, chunk in enumerate(chunks)]
        if len(parts) == 1:
            return parts[0]
        by_chunk = np.argsort(which, kind="stable")  # the order in which `parts` holds the positions
        samples = Samples.concat(parts)
        return samples if np.all(np.diff(by_chunk) == 1) else samples.take(np.argsort(by_chunk))

    async def _load(self, keys: EpisodeKeys, names: Sequence[bytes]) -> list[Samples]:
        absent = [name for name in names if name not in self._decoded and name not in self._reading]
        for at in range(0, len(absent), CHUNKS_PER_READ):
            some = absent[at : at + CHUNKS_PER_READ]
            self._reading |= dict.fromkeys(some, asyncio.create_task(self._fetch(keys, some)))
        reading = {name: self._reading[name] for name in names if name in self._reading}
        found = {name: self._decoded[name][0] for name in names if name not in reading}
        for name in found:
            self._decoded.move_to_end(name)
        for name, task in reading.items():  # shielded: another rank may wait for it too
            found[name] = (await asyncio.shield(task))[name]
        return [found[name] for name in names]

    async def _fetch(self, keys: EpisodeKeys, names: Sequence[bytes]) -> dict[bytes, Samples]:
        try:
            raws = await self._store.call("MGET", *map(keys.chunk, names))
            return {name: self._decode(keys, name, raw) for name, raw in zip(names, raws, strict=True)}
        finally:
            for name in names:
                del self._reading[name]

    def _decode(self, keys: EpisodeKeys, name: bytes, raw: bytes | None) -> Samples:
        if raw is None:
            raise NotFoundError(
                f"samples of {keys} are gone ({keys.chunk(name)}): deleted during the call, or dropped by the store"
            )
        samples = Samples.from_proto(samples_pb2.SampleBatch.FromString(raw))
        self.add(name, samples, len(raw))
        return samples
