"""Samples whose every value follows from their number, so that a test can tell whether it got the right ones."""

from collections.abc import Sequence

import numpy as np

from baton.samples import FinishReason, Ragged, RewardStatus, Samples


def make_samples(numbers: Sequence[int], *, group_size: int = 4, tokens: int = 6) -> Samples:
    """Samples with all columns; `numbers` name them, `tokens` is the mean length of a response."""
    index = np.asarray(numbers)
    lengths = [max(1, tokens + number % 3 - 1) for number in numbers]
    prompts = [range(number, number + 2 + number % 2) for number in numbers]
    responses = [np.arange(length) + 1000 * number for number, length in zip(numbers, lengths, strict=True)]
    is_scored = index % 5 != 0
    return Samples(
        sample_ids=[f"s{number}" for number in numbers],
        group_ids=[f"g{number // group_size}" for number in numbers],
        episode_ids=np.full(len(index), 7),
        prompt_ids=Ragged.of(prompts, np.int32),
        response_ids=Ragged.of(responses, np.int32),
        rollout_logprobs=Ragged.of([-0.001 * row for row in responses], np.float32),
        reference_logprobs=Ragged.of([-0.002 * row for row in responses], np.float32),
        loss_mask=Ragged.of([row % 2 for row in responses], np.uint8),
        rewards=np.where(is_scored, index / 10, np.nan).astype(np.float32),
        reward_status=np.where(is_scored, RewardStatus.VALUE, RewardStatus.TIMEOUT).astype(np.uint8),
        group_reward_mean=(index / 3).astype(np.float32),
        group_reward_std=(index / 7).astype(np.float32),
        group_sizes=np.full(len(index), group_size, np.int32),
        finish_reasons=np.where(index % 2, FinishReason.STOP, FinishReason.LENGTH).astype(np.uint8),
        policy_version_min=index.astype(np.int64),
        policy_version_max=index.astype(np.int64) + 1,
        weights_digests=[f"digest-{number}" for number in numbers],
        temperatures=np.full(len(index), 0.7, np.float32),
        metadata=[f'{{"number": {number}}}' for number in numbers],
    )


def numbers_of(samples: Samples) -> list[int]:
    """The numbers that `make_samples` made them from."""
    return [int(sample_id.removeprefix("s")) for sample_id in samples.sample_ids]
