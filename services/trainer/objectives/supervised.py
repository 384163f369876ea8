"""What people train before RL: a policy on answers that are given, and a reward model on preferences."""

from collections.abc import Sequence
from typing import Any

import torch

from baton.config.algorithm import RewardModelConfig, SftConfig
from baton.samples import Samples
from services.trainer.algorithms.losses import LossOutput, token_weights
from services.trainer.algorithms.reward_model import reward_model_loss
from services.trainer.algorithms.sft import sft_loss
from services.trainer.objectives.base import DataParallel, Objective, Part, Plan, check_pairs, loss_total, pair_weights


class SftObjective(Objective):
    """Cross-entropy of the responses."""

    def __init__(self, config: SftConfig) -> None:
        self._config = config

    def plan(self, parts: Sequence[Part], data_parallel: DataParallel) -> Plan:
        """One row of weights per part."""
        normalization = self._config.loss_normalization
        total = loss_total(normalization, parts, data_parallel)
        weights = [
            token_weights(part.mask_N, part.sample_of_N, len(part.samples), normalization=normalization, total=total)
            for part in parts
        ]

        def loss(index: int, scores: Any) -> LossOutput:
            return sft_loss(scores.logprobs_N, scores.entropies_N, weights[index])

        return Plan(loss)


class RewardModelObjective(Objective):
    """Pairs of consecutive samples, the chosen one first."""

    unit = "pair"

    def __init__(self, config: RewardModelConfig) -> None:
        self._config = config

    def check(self, samples: Samples) -> None:
        """Also refuses a pair that is not whole."""
        super().check(samples)
        check_pairs(samples)

    def plan(self, parts: Sequence[Part], data_parallel: DataParallel) -> Plan:
        """One row of weights per part."""
        weights = pair_weights(parts, data_parallel)

        def loss(index: int, scores_S: torch.Tensor) -> LossOutput:
            return reward_model_loss(scores_S, weights[index], self._config)

        return Plan(loss)
