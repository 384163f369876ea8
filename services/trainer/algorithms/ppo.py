"""Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347): the losses of policy and critic.

Their advantages and returns are made of `token_rewards.py` and `advantages.py`.
"""

from dataclasses import dataclass

import torch

from baton.config.ppo import PpoConfig
from services.trainer.algorithms.clipped import clipped_loss
from services.trainer.algorithms.divergence import reference_kl
from services.trainer.algorithms.losses import LossOutput, TokenBatch


def ppo_loss(logprobs_N: torch.Tensor, entropies_N: torch.Tensor, batch: TokenBatch, config: PpoConfig) -> LossOutput:
    """Clipped policy-gradient loss; `logprobs_N` carries the gradient."""
    output = clipped_loss(logprobs_N, entropies_N, batch, config, dual_clip=config.dual_clip)
    return LossOutput(output.loss, output.sums | reference_kl(logprobs_N, batch) | {"loss": output.loss.detach()})


@dataclass(frozen=True, slots=True)
class ValueBatch:
    """What is known of the critic's tokens before the forward pass, all float32 [N]."""

    old_values_N: torch.Tensor
    """The critic's values of the states before each token, from which the advantages were made."""
    returns_N: torch.Tensor
    weights_N: torch.Tensor
    """Each token's share of the loss; they sum to 1 over the global batch."""


def value_loss(values_N: torch.Tensor, batch: ValueBatch, config: PpoConfig) -> LossOutput:
    """Half the squared error of values that are clipped around the old ones; `values_N` carries the gradient."""
    if config.cliprange_value is None:
        near_N = values_N
    else:
        near_N = batch.old_values_N + (values_N - batch.old_values_N).clamp(-config.cliprange_value, config.cliprange_value)
    errors_N = (near_N - batch.returns_N).square()
    if not config.clipped_value_only:
        errors_N = torch.maximum(errors_N, (values_N - batch.returns_N).square())
    loss = 0.5 * (errors_N * batch.weights_N).sum()
    with torch.no_grad():
        clipped_N = (near_N != values_N).to(values_N.dtype)
        sums = {"value_loss": loss.detach(), "value_clip_fraction": (clipped_N * batch.weights_N).sum()}
    return LossOutput(loss, sums)
