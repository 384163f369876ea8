"""Group statistics, against a table worked out by hand."""

import math

import numpy as np
import pytest

from baton.errors import InvalidRequestError
from baton.samples import Ragged, RewardStatus, Samples
from services.coordinator.groups import with_group_statistics

V, A, E, T = RewardStatus.VALUE, RewardStatus.ABSTAIN, RewardStatus.ERROR, RewardStatus.TIMEOUT


def group(rewards, statuses, **columns):
    size = len(rewards)
    return Samples(
        sample_ids=[f"g/{i}" for i in range(size)],
        group_ids=["g"] * size,
        response_ids=Ragged.of([[7] * (i + 1) for i in range(size)], np.int32),
        rewards=np.asarray(rewards, np.float32),
        reward_status=np.asarray(statuses, np.uint8),
        **columns,
    )


@pytest.mark.parametrize(
    ("rewards", "statuses", "mean", "std", "size"),
    [
        ([1, 0, 0, 1], [V, V, V, V], 0.5, 0.5, 4),
        ([2, 4, 4, 4, 5, 5, 7, 9], [V] * 8, 5.0, 2.0, 8),  # population, not sample, deviation
        ([3], [V], 3.0, 0.0, 1),
        ([1, 9, 9, 3], [V, A, E, V], 2.0, 1.0, 2),  # what is not a value does not count, whatever number stands there
        ([math.nan, math.nan], [T, E], 0.0, 0.0, 0),
    ],
)
def test_mean_deviation_and_size_are_those_of_the_scored_samples(rewards, statuses, mean, std, size):
    done = with_group_statistics(group(rewards, statuses))
    assert done.group_reward_mean.tolist() == pytest.approx([mean] * len(rewards))
    assert done.group_reward_std.tolist() == pytest.approx([std] * len(rewards))
    assert done.group_sizes.tolist() == [size] * len(rewards)


def test_unscored_samples_lose_reward_and_place_in_the_loss():
    done = with_group_statistics(group([1, 5, 0], [V, E, V]))
    assert [math.isnan(reward) for reward in done.rewards] == [False, True, False]
    assert [row.tolist() for row in done.loss_mask.rows()] == [[1], [0, 0], [1, 1, 1]]


def test_a_mask_that_the_flow_made_is_kept_for_scored_samples():
    mask = Ragged.of([[0], [1, 1], [1, 0, 1]], np.uint8)
    done = with_group_statistics(group([1, 5, 0], [V, E, V], loss_mask=mask))
    assert [row.tolist() for row in done.loss_mask.rows()] == [[0], [0, 0], [1, 0, 1]]


def test_a_group_that_was_not_scored_is_refused_by_name():
    with pytest.raises(InvalidRequestError, match=r"group g has no rewards.*with_rewards"):
        with_group_statistics(group([1, 1], [V, RewardStatus.UNSPECIFIED]))
