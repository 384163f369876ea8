"""Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300): PPO's clipped loss, group-relative advantages.

The clipped ratio is taken against the policy that sampled the token, by the log-probability it reported. A sample that is
several updates old, or whose engine rounds differently, is so corrected by the same ratio that clips it.
"""

import torch

from baton.config.algorithm import GrpoConfig, GspoConfig
from services.trainer.algorithms.losses import LossOutput, TokenBatch, health, log_ratios

STD_EPSILON = 1e-6
"""Keeps a group whose rewards are all equal from dividing by zero; its advantages are zero anyway."""

def group_advantages(
    rewards_S: torch.Tensor, group_mean_S: torch.Tensor, group_std_S: torch.Tensor, config: GrpoConfig | GspoConfig
) -> torch.Tensor:
    """Advantages [S] from the statistics that each sample carries of its whole group."""
    centered_S = rewards_S - group_mean_S
    return centered_S / (group_std_S + STD_EPSILON) if config.std_normalization else centered_S


def grpo_loss(logprobs_N: torch.Tensor, entropies_N: torch.Tensor, batch: TokenBatch, config: GrpoConfig) -> LossOutput:
    """Clipped policy-gradient loss; `logprobs_N` carries the gradient."""
    log_ratio_N = log_ratios(logprobs_N, batch)
    ratio_N = log_ratio_N.exp()
    clipped_N = ratio_N.clamp(1 - config.clip_ratio_low, 1 + config.clip_ratio_high)
    plain_N = -batch.advantages_N * ratio_N
    loss_N = torch.maximum(plain_N, -batch.advantages_N * clipped_N)
    if config.dual_clip is not None:
        bounded_N = torch.minimum(loss_N, -batch.advantages_N * config.dual_clip)
        loss_N = torch.where(batch.advantages_N < 0, bounded_N, loss_N)
    loss = (loss_N * batch.weights_N).sum()
    sums = health(log_ratio_N, loss_N != plain_N, entropies_N, batch.weights_N)
    return LossOutput(loss, sums | {"loss": loss.detach()})
