"""Samples of a given size for the buffer's benchmark."""

import numpy as np

from baton.samples import Ragged, RewardStatus, Samples

TOKEN_BYTES = 8
"""A response token's id and log-probability."""


def samples_of(count: int, sample_bytes: int, *, name: str = "s", group_size: int = 8, version: int = 1) -> Samples:
    """`count` samples whose token ids and log-probabilities take `sample_bytes` each; the other columns are as in a run."""
    tokens = sample_bytes // TOKEN_BYTES
    lengths = np.full(count, tokens, np.uint32)
    random = np.random.default_rng(0)
    return Samples(
        sample_ids=[f"{name}{i}" for i in range(count)],
        group_ids=[f"{name}g{i // group_size}" for i in range(count)],
        prompt_ids=Ragged(np.arange(count, dtype=np.int32), np.ones(count, np.uint32)),
        response_ids=Ragged(random.integers(0, 50_000, count * tokens, dtype=np.int32), lengths),
        rollout_logprobs=Ragged(random.random(count * tokens, dtype=np.float32), lengths),
        rewards=random.random(count, dtype=np.float32),
        reward_status=np.full(count, RewardStatus.VALUE, np.uint8),
        group_reward_mean=np.full(count, 0.5, np.float32),
        group_reward_std=np.full(count, 0.3, np.float32),
        group_sizes=np.full(count, group_size, np.int32),
        policy_version_max=np.full(count, version, np.int64),
    )


def payload_bytes(samples: Samples) -> int:
    """What the arrays of tokens take."""
    return sum(getattr(samples, name).values.nbytes for name in ("prompt_ids", "response_ids", "rollout_logprobs"))
