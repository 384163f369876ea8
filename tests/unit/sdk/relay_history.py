"""A history in memory, for tests of relay functions: columns without a store behind them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from baton.relay.samples import EpisodeColumns, EpisodeRelayBuffer
from baton.samples import RAGGED_COLUMNS, Ragged, RewardStatus, Samples


class Loaded:
    """Implements Loader on samples that are there."""

    def __init__(self, episodes: dict[int, Samples]) -> None:
        self._episodes = episodes

    def columns(self, episode_id: int, columns: Sequence[str]) -> dict[str, Any]:
        samples = self._episodes[episode_id]
        return {c: getattr(samples, c).lengths if c in RAGGED_COLUMNS else getattr(samples, c) for c in columns}

    def samples(self, episode_id: int, positions: Sequence[int]) -> Samples:
        return self._episodes[episode_id].take(list(positions))


def history(*rewards: Sequence[float], tokens: int = 4) -> list[EpisodeRelayBuffer]:
    """One episode for each argument: its rewards, in groups of two; episode i was sampled by policy version i."""
    episodes = {}
    for episode, values in enumerate(rewards):
        array, size = np.asarray(values, np.float32), len(values)
        groups = array.reshape(-1, 2)
        episodes[episode] = Samples(
            sample_ids=[f"e{episode}s{i}" for i in range(size)],
            group_ids=[f"e{episode}g{i // 2}" for i in range(size)],
            prompt_ids=Ragged.of([[1]] * size, np.int32),
            response_ids=Ragged.of([range(tokens - 1)] * size, np.int32),
            rollout_logprobs=Ragged.of([np.zeros(tokens - 1)] * size, np.float32),
            rewards=array,
            reward_status=np.full(size, RewardStatus.VALUE, np.uint8),
            group_reward_mean=groups.mean(1).repeat(2),
            group_reward_std=groups.std(1).repeat(2),
            policy_version_max=np.full(size, episode, np.int64),
        )
    loader = Loaded(episodes)
    return [EpisodeRelayBuffer(EpisodeColumns(loader, i, len(s), s.columns())) for i, s in episodes.items()]


def names(samples: Sequence[Any]) -> list[str]:
    return [sample["sample_id"] for sample in samples]
