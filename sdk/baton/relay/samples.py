"""Earlier episodes as a relay function sees them.

    def relay_sample_fn(episode_relay_buffers):
        buffers = []
        for relay_buffer in episode_relay_buffers:
            buffers += relay_buffer.buffer
        return buffers

A sample is dict-like and loads from the store what is touched: choosing among many by reward moves no tokens. What comes
back unchanged travels as a reference. A changed sample is a new one; the history itself never changes: its arrays and
columns are read-only.
"""

import json
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from copy import deepcopy
from typing import Any, Protocol

import numpy as np

from baton.samples import RAGGED_COLUMNS, Samples

FIELDS = {
    "sample_id": "sample_ids", "group_id": "group_ids", "episode_id": "episode_ids", "prompt_ids": "prompt_ids",
    "response_ids": "response_ids", "rollout_logprobs": "rollout_logprobs", "model_logprobs": "model_logprobs",
    "uncut_logprobs": "uncut_logprobs",
    "reference_logprobs": "reference_logprobs", "values": "values", "token_rewards": "token_rewards",
    "loss_mask": "loss_mask", "reward": "rewards", "reward_status": "reward_status",
    "group_reward_mean": "group_reward_mean", "group_reward_std": "group_reward_std", "group_size": "group_sizes",
    "finish_reason": "finish_reasons", "policy_version_min": "policy_version_min",
    "policy_version_max": "policy_version_max", "weights_digest": "weights_digests", "temperature": "temperatures",
    "metadata": "metadata", "span_versions": "span_versions", "span_tokens": "span_tokens",
}  # fmt: skip
"""A sample's keys, and the columns of `Samples` that they come from."""
LENGTHS = {"prompt_length": "prompt_ids", "response_length": "response_ids"}
"""Keys that every sample has besides, for their tokens need not be loaded to count them."""

BLOCK = 256
"""Neighbours that are loaded together when the tokens of one are touched."""
BLOCKS_KEPT = 32
_DELETED = object()
_UNREAD = object()


class Loader(Protocol):
    """Where an episode's samples come from."""

    def columns(self, episode_id: int, columns: Sequence[str]) -> dict[str, Any]:
        """Columns of all samples: arrays or lists [size]; of the columns of arrays the lengths."""
        ...

    def samples(self, episode_id: int, positions: Sequence[int]) -> Samples:
        """Whole samples."""
        ...


class EpisodeColumns:
    """The columns of one stored episode, each loaded when it is first asked for, and kept for later calls: read-only."""

    def __init__(self, loader: Loader, episode_id: int, size: int, present: Sequence[str]) -> None:
        self.episode_id = episode_id
        self.size = size
        self.present = frozenset(("sample_ids", *present))
        self._loader = loader
        self._columns: dict[str, Any] = {}
        self._blocks: dict[int, Samples] = {}

    def keep(self, columns: Mapping[str, Any]) -> None:
        """Takes columns that were loaded before anybody asked."""
        self._columns |= {column: _frozen(values) for column, values in columns.items()}

    def column(self, column: str) -> Any:
        """One column, array or tuple; of a column of arrays its lengths. Raises KeyError if the samples do not have it."""
        if column not in self._columns:
            if column not in self.present:
                raise KeyError(column)
            self.keep(self._loader.columns(self.episode_id, [column]))
        return self._columns[column]

    def row(self, column: str, position: int) -> np.ndarray:
        """One sample's array. Raises KeyError if the samples do not have it."""
        if column not in self.present:
            raise KeyError(column)
        block, offset = divmod(position, BLOCK)
        if block not in self._blocks:
            while len(self._blocks) >= BLOCKS_KEPT:
                del self._blocks[next(iter(self._blocks))]
            positions = range(block * BLOCK, min((block + 1) * BLOCK, self.size))
            self._blocks[block] = self._loader.samples(self.episode_id, positions)
        ragged = getattr(self._blocks[block], column)
        end = int(ragged.lengths[: offset + 1].sum(dtype=np.int64))
        return _frozen(ragged.values[end - int(ragged.lengths[offset]) : end])


def _frozen(column: Any) -> Any:
    """The same values, which whoever is given them cannot change in place."""
    if not isinstance(column, np.ndarray):
        return tuple(column)
    view = column.view()
    view.flags.writeable = False
    return view


class RelaySample(MutableMapping[str, Any]):
    """One stored sample, as a dict with the keys of FIELDS and LENGTHS.

    Setting a key, or changing what its metadata holds, makes it another sample; arrays are read-only.
    """

    __slots__ = ("_changes", "_columns", "_metadata", "position")

    def __init__(self, columns: EpisodeColumns, position: int) -> None:
        self._columns = columns
        self.position = position
        self._changes: dict[str, Any] | None = None
        self._metadata: Any = _UNREAD

    @property
    def episode_id(self) -> int:
        """The episode that stores it."""
        return self._columns.episode_id

    @property
    def is_changed(self) -> bool:
        """Whether a key was set or deleted, or its metadata holds something else than what is stored."""
        if self._changes is not None or self._metadata is _UNREAD:
            return self._changes is not None
        try:
            return json.dumps(self._metadata) != json.dumps(self._stored_metadata())
        except (TypeError, ValueError):  # something was put into it that cannot be stored, which is refused later
            return True

    def _stored_metadata(self) -> Any:
        return json.loads(self._columns.column("metadata")[self.position])

    def __getitem__(self, key: str) -> Any:
        if self._changes is not None and key in self._changes:
            if (value := self._changes[key]) is _DELETED:
                raise KeyError(key)
            return value
        if key in LENGTHS:
            return int(self._columns.column(LENGTHS[key])[self.position])
        column = FIELDS[key]
        if column in RAGGED_COLUMNS:
            return self._columns.row(column, self.position)
        if column == "metadata":
            if self._metadata is _UNREAD:
                self._metadata = self._stored_metadata()
            return self._metadata
        value = self._columns.column(column)[self.position]
        return value if isinstance(value, str) else value.item()

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in FIELDS:
            raise KeyError(f"a sample has no {key!r}; it has {', '.join(FIELDS)}")
        self._changes = (self._changes or {}) | {key: value}

    def __delitem__(self, key: str) -> None:
        self[key]  # a KeyError if it is not there
        self._changes = (self._changes or {}) | {key: _DELETED}

    def __iter__(self) -> Iterator[str]:
        changes = self._changes or {}
        for key, column in FIELDS.items():
            if changes.get(key, None if column in self._columns.present else _DELETED) is not _DELETED:
                yield key

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"RelaySample(episode {self.episode_id}, position {self.position}{', changed' if self.is_changed else ''})"

    def copy(self) -> dict[str, Any]:
        """A dict of one's own, with everything loaded; its arrays can be changed in place."""
        return deepcopy(dict(self))


class EpisodeRelayBuffer:
    """One episode of the history, for one call of the relay function."""

    def __init__(self, columns: EpisodeColumns) -> None:
        self._columns = columns
        self._samples: list[RelaySample] | None = None

    @property
    def episode_id(self) -> int:
        """0-based."""
        return self._columns.episode_id

    @property
    def buffer(self) -> list[RelaySample]:
        """All samples in the order in which they were stored. The list is the caller's own."""
        if self._samples is None:
            self._samples = [RelaySample(self._columns, position) for position in range(self._columns.size)]
        return self._samples.copy()

    def column(self, name: str) -> Any:
        """A column of `Samples` for all samples at once: a read-only array or a tuple [size]; of arrays the lengths.

        Raises KeyError if the samples do not have it.
        """
        return self._columns.column(name)

    def __len__(self) -> int:
        return self._columns.size
