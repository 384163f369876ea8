"""What an episode makes of a flow's groups: a name of its own for each, and the statistics that an advantage needs."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

import numpy as np

from baton.errors import InvalidRequestError
from baton.flow import Group
from baton.samples import Ragged, RewardStatus, Samples


async def named_apart(groups: AsyncIterator[Group]) -> AsyncIterator[Group]:
    """An episode's groups, each with a name of its own: what a flow makes of one prompt again is `NAME+1`, `NAME+2`, ..."""
    made: Counter[str] = Counter()
    async with aclosing(groups):
        async for group in groups:
            name = group.prompt.group_id
            yield _renamed(group, f"{name}+{made[name]}") if made[name] else group
            made[name] += 1


def _renamed(group: Group, name: str) -> Group:
    size = len(group.samples)
    samples = replace(group.samples, group_ids=[name] * size, sample_ids=[f"{name}/{index}" for index in range(size)])
    return replace(group, prompt=replace(group.prompt, group_id=name), samples=samples)


def with_group_statistics(samples: Samples) -> Samples:
    """One whole group, scored [G] -> with mean, population deviation and size of its rewards in every sample.

    Only samples whose status is VALUE count. The others keep no reward (NaN) and lose their place in the loss (mask all
    zero). A group without any value has mean 0, deviation 0 and size 0. Raises InvalidRequestError if it was not scored.
    """
    if samples.rewards is None or samples.reward_status is None or (samples.reward_status == RewardStatus.UNSPECIFIED).any():
        raise InvalidRequestError(
            f"group {samples.group_ids[0]} has no rewards; the flow must yield what context.score gave it, or "
            "group.with_rewards(...)"
        )
    counts_G = samples.reward_status == RewardStatus.VALUE
    rewards_G = np.where(counts_G, samples.rewards, np.nan).astype(np.float32)
    values = rewards_G[counts_G].astype(np.float64)
    mean, std = (values.mean(), values.std()) if len(values) else (0.0, 0.0)
    size = len(samples)
    return replace(
        samples,
        rewards=rewards_G,
        loss_mask=_mask(samples, counts_G),
        group_reward_mean=np.full(size, mean, np.float32),
        group_reward_std=np.full(size, std, np.float32),
        group_sizes=np.full(size, len(values), np.int32),
    )


def _mask(samples: Samples, counts_G: np.ndarray) -> Ragged:
    """The loss mask with every token of an unscored response at zero."""
    lengths = samples.response_ids.lengths
    given = samples.loss_mask.values if samples.loss_mask is not None else np.ones(int(lengths.sum()), np.uint8)
    return Ragged(given * np.repeat(counts_G, lengths).astype(np.uint8), lengths)
