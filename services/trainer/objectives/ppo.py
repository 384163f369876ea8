"""PPO: rewards per token, advantages by the critic's values, whitened over the global batch; losses of policy and critic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from baton.config.ppo import PpoConfig
from services.trainer.algorithms.advantages import (
    explained_variance,
    generalized_advantages,
    mean_and_variance,
    whitened,
)  # fmt: skip
from services.trainer.algorithms.kl_control import next_kl_coef
from services.trainer.algorithms.losses import LossOutput, TokenBatch, token_weights
from services.trainer.algorithms.ppo import ValueBatch, ppo_loss, value_loss
from services.trainer.algorithms.token_rewards import ngram_penalty, token_rewards
from services.trainer.checks import SCORED
from services.trainer.objectives.base import DataParallel, Objective, Part, Plan, loss_total, old_logprobs, token_total


@dataclass(frozen=True, slots=True)
class _Actions:
    """One part's tokens that enter the loss [A of N], float64. Others, a tool's answer say, are no steps of the
    estimation."""

    places_A: torch.Tensor
    """Their indices among the part's N tokens."""
    advantages_A: torch.Tensor
    returns_A: torch.Tensor
    values_A: torch.Tensor
    kl_S: torch.Tensor


class PpoObjective(Objective):
    """A clipped policy gradient with a critic. Its state is the weight of the divergence from the reference."""

    needs_reward = True

    def __init__(self, config: PpoConfig) -> None:
        self._config = config
        self._kl_coef = config.init_kl_coef
        needs_reference = config.init_kl_coef > 0 or config.lm_coef != 0
        self.columns = (
            *SCORED, "rewards", "reward_status", "rollout_logprobs", "values",
            *(["reference_logprobs"] if needs_reference else []),
        )  # fmt: skip

    def state(self) -> dict[str, float]:
        """The weight of the divergence in the next step's rewards."""
        return {"kl_coef": self._kl_coef}

    def restore(self, state: Mapping[str, float]) -> None:
        """Goes on with that weight."""
        self._kl_coef = state.get("kl_coef", self._kl_coef)

    def advance(self, totals: Mapping[str, float]) -> None:
        """Adapts the weight to the divergence of all samples of the update."""
        if samples := totals["samples"]:
            self._kl_coef = next_kl_coef(self._kl_coef, totals["kl"] / samples, samples, self._config)

    def plan(self, parts: Sequence[Part], data_parallel: DataParallel) -> Plan:
        """Statistics over the global batch first, then one batch of tokens per part for each of the two losses."""
        config = self._config
        actions = [self._actions(part) for part in parts]
        total = loss_total(config.loss_normalization, parts, data_parallel)
        samples = data_parallel.total(sum(float(part.kept_S.sum()) for part in parts))
        mean, variance = 0.0, 1.0
        if config.whiten_advantages:
            zeros = self._padding(actions, parts, samples, data_parallel) if config.whiten_padding else 0
            mean, variance = mean_and_variance((found.advantages_A for found in actions), data_parallel.sum, zeros=zeros)
        batches, value_batches = [], []
        for part, found in zip(parts, actions, strict=True):
            advantages_A = whitened(found.advantages_A, mean, variance) if config.whiten_advantages else found.advantages_A
            batches.append(self._batch(part, _spread(advantages_A, found, part), total))
            returns_N = _spread(found.returns_A, found, part)
            value_batches.append(ValueBatch(part.tokens("values"), returns_N, batches[-1].weights_N))
        kl = data_parallel.total(sum(float(found.kl_S.sum()) for found in actions))

        def loss(index: int, scores: Any) -> LossOutput:
            return ppo_loss(scores.logprobs_N, scores.entropies_N, batches[index], config)

        def critic_loss(index: int, values_N: torch.Tensor) -> LossOutput:
            return value_loss(values_N, value_batches[index], config)

        metrics = {"kl_coef": self._kl_coef, "sequence_kl": kl / max(samples, 1.0)} | _critic_health(actions, data_parallel)
        return Plan(loss, critic_loss, metrics, {"kl": kl, "samples": samples})

    def _actions(self, part: Part) -> _Actions:
        config, samples = self._config, part.samples
        places_A = (part.mask_N > 0).nonzero()[:, 0]
        sample_of_A = part.sample_of_N[places_A]
        penalties = [0.0] * len(samples)
        if config.ngram_coef:
            penalties = [ngram_penalty(row.tolist()) for row in samples.response_ids.rows()]
        rewards_A, kl_S = token_rewards(
            part.numbers("rewards"),
            torch.tensor(penalties, dtype=torch.float64, device=places_A.device),
            old_logprobs(part)[places_A],
            part.tokens("reference_logprobs")[places_A] if part.has("reference_logprobs") else None,
            sample_of_A, config, kl_coef=self._kl_coef,
        )  # fmt: skip
        if part.has("token_rewards"):
            rewards_A = rewards_A + part.tokens("token_rewards")[places_A]
        values_A = part.tokens("values")[places_A].double()
        advantages_A, returns_A = generalized_advantages(
            rewards_A, values_A, sample_of_A, gamma=config.gamma, lam=config.lam
        )
        return _Actions(places_A, advantages_A, returns_A, values_A, kl_S)

    def _batch(self, part: Part, advantages_N: torch.Tensor, total: float) -> TokenBatch:
        return TokenBatch(
            rollout_logprobs_N=part.tokens("rollout_logprobs"),
            old_logprobs_N=old_logprobs(part),
            advantages_N=advantages_N,
            weights_N=token_weights(
                part.mask_N, part.sample_of_N, len(part.samples),
                normalization=self._config.loss_normalization, total=total,
            ),
            sample_of_N=part.sample_of_N,
            reference_logprobs_N=part.tokens("reference_logprobs") if part.has("reference_logprobs") else None,
        )  # fmt: skip

    def _padding(
        self, actions: Sequence[_Actions], parts: Sequence[Part], samples: float, data_parallel: DataParallel
    ) -> int:
        """Zeros that pad every response to the global batch's longest."""
        lengths = [torch.bincount(part.sample_of_N[found.places_A]) for part, found in zip(parts, actions, strict=True)]
        longest = data_parallel.maximum(max((int(row.max()) for row in lengths if len(row)), default=0))
        return int(samples * longest - token_total(parts, data_parallel))


def _spread(values_A: torch.Tensor, actions: _Actions, part: Part) -> torch.Tensor:
    """Values of actions among all tokens, float32 [N]; 0 elsewhere."""
    return torch.zeros_like(part.mask_N).index_put((actions.places_A,), values_A.float())


def _critic_health(actions: Sequence[_Actions], data_parallel: DataParallel) -> dict[str, float]:
    """How well the values that the advantages were made of foresaw the returns, over the global batch."""
    mean, variance = mean_and_variance((found.returns_A for found in actions), data_parallel.sum)
    value_mean, _ = mean_and_variance((found.values_A for found in actions), data_parallel.sum)
    errors = (found.returns_A - found.values_A for found in actions)
    _, error_variance = mean_and_variance(errors, data_parallel.sum)
    return {
        "return_mean": mean,
        "value_mean": value_mean,
        "explained_variance": explained_variance(error_variance, variance),
    }
