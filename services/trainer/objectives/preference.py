"""DPO and IPO on pairs that somebody preferred, and online DPO on groups that were scored."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from baton.config.algorithm import DpoConfig, OnlineDpoConfig
from baton.errors import InvalidRequestError
from baton.samples import RewardStatus, Samples
from services.trainer.algorithms.dpo import PreferenceBatch, dpo_loss
from services.trainer.algorithms.losses import LossOutput, sample_sums
from services.trainer.algorithms.online_dpo import OnlineDpoBatch, online_dpo_loss, ordered_pairs
from services.trainer.checks import SCORED
from services.trainer.objectives.base import DataParallel, Objective, Part, Plan, check_pairs, pair_weights


class DpoObjective(Objective):
    """Pairs of consecutive samples, the chosen one first."""

    columns = (*SCORED, "reference_logprobs")
    unit = "pair"

    def __init__(self, config: DpoConfig) -> None:
        self._config = config

    def check(self, samples: Samples) -> None:
        """Also refuses a pair that is not whole."""
        super().check(samples)
        check_pairs(samples)

    def plan(self, parts: Sequence[Part], data_parallel: DataParallel) -> Plan:
        """One batch of pairs per part."""
        batches = [
            PreferenceBatch(part.tokens("reference_logprobs"), part.mask_N, part.sample_of_N, weights_P)
            for part, weights_P in zip(parts, pair_weights(parts, data_parallel), strict=True)
        ]

        def loss(index: int, scores: Any) -> LossOutput:
            return dpo_loss(scores.logprobs_N, batches[index], self._config)

        return Plan(loss)


class OnlineDpoObjective(Objective):
    """Whole groups of consecutive samples; better ones are preferred to worse ones."""

    columns = (*SCORED, "group_ids", "group_sizes", "rewards", "reward_status", "reference_logprobs")
    unit = "group"
    needs_reward = True

    def __init__(self, config: OnlineDpoConfig) -> None:
        self._config = config

    def check(self, samples: Samples) -> None:
        """Also refuses a group that is not whole."""
        super().check(samples)
        _groups(samples)

    def plan(self, parts: Sequence[Part], data_parallel: DataParallel) -> Plan:
        """One batch of ordered pairs per part."""
        groups = []
        for part in parts:
            group_of_S = torch.tensor(_groups(part.samples), device=part.mask_N.device)
            groups.append(torch.where(part.kept_S, group_of_S, -1))
        total = data_parallel.total(sum(len(group_of_S[group_of_S >= 0].unique()) for group_of_S in groups))
        batches = [self._batch(part, group_of_S, max(total, 1.0)) for part, group_of_S in zip(parts, groups, strict=True)]

        def loss(index: int, scores: Any) -> LossOutput:
            return online_dpo_loss(scores.logprobs_N, batches[index], self._config)

        return Plan(loss)

    def _batch(self, part: Part, group_of_S: torch.Tensor, total: float) -> OnlineDpoBatch:
        rewards_S = part.numbers("rewards")
        if part.has("token_rewards"):
            rewards_S = rewards_S + sample_sums(part.tokens("token_rewards"), part.sample_of_N, len(part.samples))
        return OnlineDpoBatch(
            reference_logprobs_N=part.tokens("reference_logprobs"),
            mask_N=part.mask_N,
            sample_of_N=part.sample_of_N,
            samples=len(part.samples),
            pairs=ordered_pairs(rewards_S, group_of_S, total),
        )


def _groups(samples: Samples) -> list[int]:
    """Number of each sample's group in the micro-batch [S]. A group that a step has twice, to fill it, counts as two.

    Raises InvalidRequestError for a group that lacks a sample with a reward; what has none is compared with nothing.
    """
    firsts: list[int] = []
    for i, sample_id in enumerate(samples.sample_ids):
        begins = i == 0 or samples.group_ids[i] != samples.group_ids[i - 1]
        if begins or sample_id == samples.sample_ids[firsts[-1]]:
            firsts.append(i)
    ends = [*firsts[1:], len(samples)]
    for first, end in zip(firsts, ends, strict=True):
        scored = int((samples.reward_status[first:end] == RewardStatus.VALUE).sum())
        size = int(samples.group_sizes[first])
        if scored != size:
            raise InvalidRequestError(
                f"a micro-batch has {scored} samples with a reward of group {samples.group_ids[first]}, which has {size}; "
                "online DPO compares a group's samples with each other and needs them all in one micro-batch"
            )
    return np.repeat(np.arange(len(firsts)), np.subtract(ends, firsts)).tolist()
