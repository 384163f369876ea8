"""The history of a run for the relay function: read through the buffer service, kept between calls."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import numpy as np

from baton.api.common.v1 import samples_pb2
from baton.clients.relay import RelayClient
from baton.relay.samples import EpisodeColumns, EpisodeRelayBuffer
from baton.samples import COLUMN_TYPES, RAGGED_COLUMNS, Samples

LOADED_FIRST = (
    "sample_ids", "group_ids", "prompt_ids", "response_ids", "rewards", "reward_status", "group_reward_mean",
    "group_reward_std", "group_sizes", "policy_version_max",
)  # fmt: skip
"""Columns that most relay functions look at: loaded before the function is called, of new episodes only."""

LATER_S = 5.0
"""How much longer a thread waits than the call that it waits for, whose own error says what was late."""


class RelayHistory:
    """The relayed episodes of one run. Stored episodes never change, so what was read once is kept while they are there."""

    def __init__(self, client: RelayClient, run_id: str, timeout_s: float) -> None:
        """`client` belongs to the running event loop; `timeout_s` is how long its calls take at most."""
        self._client = client
        self._run_id = run_id
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._episodes: dict[int, EpisodeColumns] = {}

    async def buffers(self, newest: int | None = None) -> list[EpisodeRelayBuffer]:
        """The closed relayed episodes, oldest first, with the columns of LOADED_FIRST; only so many of the newest if given.

        The store may have more than are kept: those that a checkpoint or a training set still needs.
        """
        episodes: dict[int, EpisodeColumns] = {}
        stored = await self._client.list_history(self._run_id)
        for kept in stored if newest is None else stored[max(len(stored) - newest, 0) :]:
            columns = self._episodes.get(kept.episode_id)
            if columns is None:
                columns = EpisodeColumns(self, kept.episode_id, kept.samples, kept.columns)
                columns.keep(await self._columns(kept.episode_id, [c for c in LOADED_FIRST if c in columns.present]))
            episodes[kept.episode_id] = columns
        self._episodes = episodes
        return [EpisodeRelayBuffer(columns) for columns in episodes.values()]

    def columns(self, episode_id: int, columns: Sequence[str]) -> dict[str, Any]:
        """For the relay function's thread: see `Loader`."""
        return self._wait(self._columns(episode_id, columns))

    def samples(self, episode_id: int, positions: Sequence[int]) -> Samples:
        """For the relay function's thread: see `Loader`."""
        return self._wait(self._client.read_samples(self._run_id, episode_id, positions))

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        if asyncio._get_running_loop() is self._loop:
            work.close()
            raise RuntimeError(
                "a relayed sample loads what it lacks, which would block the event loop; touch it in a thread"
            )
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(self._timeout_s + LATER_S)

    async def _columns(self, episode_id: int, columns: Sequence[str]) -> dict[str, Any]:
        parts = await self._client.read_columns(self._run_id, episode_id, columns)
        return {column: _read(parts, column) for column in columns}


def _read(parts: Sequence[samples_pb2.SampleBatch], column: str) -> np.ndarray | list[str]:
    if column in RAGGED_COLUMNS:
        return np.concatenate([np.frombuffer(getattr(part, column).lengths, "<u4") for part in parts])
    if column in COLUMN_TYPES:
        return np.concatenate([np.frombuffer(getattr(part, column), COLUMN_TYPES[column]) for part in parts])
    return [text for part in parts for text in getattr(part, column)]
