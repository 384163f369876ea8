"""What one pass of an episode trains: its own samples in arrival order, or those that a relay function selected."""

from collections import OrderedDict
from typing import Any

import numpy as np

from baton.samples import Samples
from services.buffer.chunks import Chunks, Layout
from services.buffer.episode import Episode
from services.buffer.keys import EpisodeKeys
from services.buffer.store import Store

REFERENCE = np.dtype([("episode", "<i8"), ("position", "<i8")])
"""One sample of a selection: where it is. Of a made sample: (-1, place among the made ones)."""
MADE = -1

LAYOUTS = 64
"""Lists of chunks, and selections, kept between leases, so that a lease costs the same however long they are."""


class TrainingSets:
    """Reads samples by their position in an episode's training set, or in the episode itself."""

    def __init__(self, store: Store, chunks: Chunks) -> None:
        self._store = store
        self._chunks = chunks
        self._layouts: OrderedDict[str, Layout] = OrderedDict()
        self._selections: OrderedDict[str, np.ndarray] = OrderedDict()

    async def read(self, keys: EpisodeKeys, episode: Episode, positions: np.ndarray) -> list[Samples]:
        """The samples at these positions of the training set, in that order, in one or more parts.

        `episode.available` must exceed all positions.
        """
        if not episode.relayed:
            return await self.read_episode(keys, positions)
        references = (await self._selection(keys, episode))[positions]
        parts, order = [], []
        for episode_id in np.unique(references["episode"]):
            which = np.flatnonzero(references["episode"] == episode_id)
            wanted = references["position"][which]
            if episode_id == MADE:
                layout = await self._covering(keys.made, int(wanted.max()) + 1)
                parts += await self._chunks.read(keys.run, layout, wanted)
            else:
                parts += await self.read_episode(EpisodeKeys(keys.run_id, int(episode_id)), wanted)
            order.append(which)
        if len(order) == 1:
            return parts
        return [Samples.concat(parts).take(np.argsort(np.concatenate(order)))]

    async def read_episode(self, keys: EpisodeKeys, positions: np.ndarray) -> list[Samples]:
        """The samples at these positions of the episode, in that order, in one or more parts. They must be stored."""
        layout = await self._covering(keys.chunks, int(positions.max()) + 1)
        return await self._chunks.read(keys.run, layout, positions)

    def forget(self, keys: EpisodeKeys) -> None:
        """Call when an episode ended: another one may be opened in its place."""
        for key in (keys.chunks, keys.made):
            self._layouts.pop(key, None)
        self._selections.pop(keys.selection, None)

    async def _covering(self, key: str, size: int) -> Layout:
        layout = _recent(self._layouts, key, lambda: Layout(key))
        await layout.cover(self._store, size)
        return layout

    async def _selection(self, keys: EpisodeKeys, episode: Episode) -> np.ndarray:
        """REFERENCE [selected]. Never changes once it is there."""
        if keys.selection not in self._selections:
            raw = await self._store.call("GET", keys.selection)
            _recent(self._selections, keys.selection, lambda: np.frombuffer(raw, REFERENCE))
        return self._selections[keys.selection]


def _recent(kept: OrderedDict[str, Any], key: str, make: Any) -> Any:
    """The value of `key`, made if it is not there; the one that was not used for longest gives way."""
    if key not in kept:
        kept[key] = make()
        if len(kept) > LAYOUTS:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]
