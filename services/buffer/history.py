"""The relayed episodes of a run: which there are, which go, and their samples column by column or whole."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import numpy as np

from baton.api.common.v1 import samples_pb2
from baton.errors import BackpressureError, InvalidRequestError
from baton.samples import RAGGED_COLUMNS, Samples, fits
from services.buffer.chunks import Chunks, Layout
from services.buffer.episode import Episode
from services.buffer.keys import EpisodeKeys, RunKeys
from services.buffer.store import Store
from services.buffer.training_set import TrainingSets

READ_POSITIONS = 512
"""Whole samples are read this many at a time, before they are split into messages."""

_COLUMNS = samples_pb2.SampleBatch.DESCRIPTOR.fields_by_name


@dataclass(frozen=True, slots=True)
class Kept:
    """A relayed episode that is closed."""

    episode_id: int
    samples: int
    bytes: int
    columns: str


class History:
    """Reads and trims the history; state is in the store only."""

    def __init__(self, store: Store, chunks: Chunks, sets: TrainingSets) -> None:
        self._store = store
        self._chunks = chunks
        self._sets = sets

    async def episodes(self, run: RunKeys) -> list[Kept]:
        """Oldest first."""
        ids = [int(raw) for raw in await self._store.call("ZRANGE", run.episodes, 0, -1)]
        fields = ("relayed", "closed", "stored", "bytes", "columns")
        rows = await self._store.pipeline(
            [("HMGET", EpisodeKeys(run.run_id, episode_id).episode, *fields) for episode_id in ids]
        )
        kept = []
        for episode_id, (relayed, closed, stored, size, columns) in zip(ids, rows, strict=True):
            if relayed == closed == b"1":
                kept.append(Kept(episode_id, int(stored), int(size), (columns or b"").decode()))
        return kept

    async def trim(
        self, run: RunKeys, keep_episodes: int, keep_bytes: int, evict_for_bytes: bool, shown_from: int = 0,
        spared: Sequence[range] = (),
    ) -> tuple[list[int], int]:  # fmt: skip
        """Evicts the oldest episodes beyond a number (0: any) and a size (0: any), and those before `shown_from`; returns
        their ids, and how many are within these limits.

        The newest episode stays, and so do those that are not trained, that a training set refers to, or that are `spared`.
        Raises, and evicts nothing: BackpressureError if the size asks for an eviction and `evict_for_bytes` does not allow
        one, InvalidRequestError if the newest episode alone is larger than that.
        """
        kept = await self.episodes(run)
        before = sum(episode.episode_id < shown_from for episode in kept)
        surplus = kept[: max(before, len(kept) - keep_episodes if keep_episodes else 0)]
        rest = kept[len(surplus) :]
        if keep_bytes and rest and rest[-1].bytes > keep_bytes:
            raise InvalidRequestError(
                f"episode {rest[-1].episode_id} of {run} alone has {rest[-1].bytes} bytes, more than store.relay_max_bytes "
                f"({keep_bytes}), so it can never be relayed; raise that, or lower runtime.sample_per_episode"
            )
        total = sum(episode.bytes for episode in rest)
        while keep_bytes and total > keep_bytes and len(rest) > 1:
            if not evict_for_bytes:
                raise BackpressureError(
                    f"the history of {run} has {total} bytes in {len(rest)} episodes, more than store.relay_max_bytes "
                    f"({keep_bytes}); raise that, set store.relay_when_full: evict, or lower runtime.max_relay_episode"
                )
            total -= rest[0].bytes
            surplus.append(rest.pop(0))
        evicted = []
        for episode in surplus:
            if any(episode.episode_id in some for some in spared):
                continue
            if await self._evict(EpisodeKeys(run.run_id, episode.episode_id)):
                evicted.append(episode.episode_id)
        return evicted, len(rest)

    async def _evict(self, keys: EpisodeKeys) -> bool:
        layout, run = Layout(keys.chunks), keys.run
        await layout.cover(self._store, 1)
        freed = [keys.chunks, keys.sample_ids, keys.groups, *map(run.chunk, layout.names())]
        answer = await self._store.run(
            "evict", [keys.episode, run.episodes, run.usage, run.relaying, *freed], keys.episode_id
        )  # fmt: skip
        self._sets.forget(keys)
        return answer[0] == b"evicted"

    async def columns(self, keys: EpisodeKeys, columns: Sequence[str]) -> AsyncIterator[samples_pb2.SampleBatch]:
        """Yields the columns of all samples, in position order; of arrays the lengths alone."""
        for column in columns:
            if column not in _COLUMNS or column == "size":
                raise InvalidRequestError(f"columns: there is no {column!r}; choose from {', '.join(_COLUMNS)}")
        episode = await Episode.read(self._store, keys)
        layout = Layout(keys.chunks)
        await layout.cover(self._store, episode.stored)
        merged = _Merged(columns)
        for light in await self._chunks.read_light(keys.run, layout):
            if merged.size and not fits(merged.bytes + light.ByteSize()):  # one chunk's came in one message, so it fits
                yield merged.message()
                merged = _Merged(columns)
            merged.add(light)
        if merged.size:
            yield merged.message()

    async def samples(self, keys: EpisodeKeys, positions: Sequence[int]) -> AsyncIterator[Samples]:
        """Yields the samples at the positions, in that order, each part small enough for a message."""
        episode = await Episode.read(self._store, keys)
        if positions and max(positions) >= episode.stored:
            raise InvalidRequestError(f"positions: {max(positions)} is asked for, but {keys} has {episode.stored} samples")
        for at in range(0, len(positions), READ_POSITIONS):
            some = np.asarray(positions[at : at + READ_POSITIONS], np.int64)
            for part in Samples.concat(await self._sets.read_episode(keys, some)).split():
                yield part


class _Merged:
    """Columns of several messages, one after the other."""

    def __init__(self, columns: Sequence[str]) -> None:
        self.size = 0
        self.bytes = 0
        self._columns = columns
        self._texts = samples_pb2.SampleBatch()
        self._parts: dict[str, list[bytes]] = {column: [] for column in columns}

    def add(self, light: samples_pb2.SampleBatch) -> None:
        self.size += light.size
        for column in self._columns:
            value = getattr(light, column)
            if column in RAGGED_COLUMNS:
                self._parts[column].append(value.lengths)
            elif isinstance(value, bytes):
                self._parts[column].append(value)
            else:
                getattr(self._texts, column).MergeFrom(value)
        self.bytes += light.ByteSize()

    def message(self) -> samples_pb2.SampleBatch:
        self._texts.size = self.size
        for column, parts in self._parts.items():
            if column in RAGGED_COLUMNS:
                getattr(self._texts, column).lengths = b"".join(parts)
            elif parts:
                setattr(self._texts, column, b"".join(parts))
        return self._texts
