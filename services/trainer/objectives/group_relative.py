"""GRPO and GSPO: advantages from the statistics that each sample carries of its group."""

from collections.abc import Sequence
from typing import Any

from baton.config.policy_gradient import GrpoConfig, GspoConfig
from services.trainer.algorithms.grpo import group_advantages, grpo_loss
from services.trainer.algorithms.gspo import gspo_loss
from services.trainer.algorithms.losses import LossOutput, TokenBatch, token_weights
from services.trainer.checks import SCORED
from services.trainer.objectives.base import (
    DataParallel,
    Objective,
    Part,
    Plan,
    loss_total,
    old_logprobs,
    sample_total,
    token_total,
)  # fmt: skip

_LOSSES = {"grpo": grpo_loss, "gspo": gspo_loss}


class GroupRelativeObjective(Objective):
    """A clipped policy gradient without a critic. Any split of a group gives the same numbers."""

    needs_reward = True

    def __init__(self, config: GrpoConfig | GspoConfig) -> None:
        self._config = config
        self._loss = _LOSSES[config.name]
        needs_reference = isinstance(config, GrpoConfig) and config.kl_coef > 0
        self.columns = (
            *SCORED, "rewards", "reward_status", "group_reward_mean", "group_reward_std", "rollout_logprobs",
            *(["reference_logprobs"] if needs_reference else []),
        )  # fmt: skip

    def plan(self, parts: Sequence[Part], data_parallel: DataParallel) -> Plan:
        """One batch of tokens per part."""
        normalization, weights_total = self._config.loss_normalization, 1.0
        if normalization == "constant":
            total = max(sample_total(parts, data_parallel), 1.0) * self._config.normalization_length
            normalization, weights_total = "token", max(token_total(parts, data_parallel), 1.0) / total
        else:
            total = loss_total(normalization, parts, data_parallel)
        batches = [self._batch(part, normalization, total, weights_total) for part in parts]

        def loss(index: int, scores: Any) -> LossOutput:
            return self._loss(scores.logprobs_N, scores.entropies_N, batches[index], self._config)

        return Plan(loss)

    def _batch(self, part: Part, normalization: str, total: float, weights_total: float) -> TokenBatch:
        advantages_S = group_advantages(
            part.numbers("rewards"), part.numbers("group_reward_mean"), part.numbers("group_reward_std"), self._config
        )
        return TokenBatch(
            rollout_logprobs_N=part.tokens("rollout_logprobs"),
            old_logprobs_N=old_logprobs(part),
            advantages_N=advantages_S[part.sample_of_N],
            weights_N=token_weights(
                part.mask_N, part.sample_of_N, len(part.samples), normalization=normalization, total=total
            ),
            sample_of_N=part.sample_of_N,
            reference_logprobs_N=part.tokens("reference_logprobs") if part.has("reference_logprobs") else None,
            weights_total=weights_total,
        )
