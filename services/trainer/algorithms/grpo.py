"""Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300): PPO's clipped loss, group-relative advantages.

The clipped ratio is taken against the policy that sampled the token, by the log-probability it reported. A sample that is
several updates old, or whose engine rounds differently, is so corrected by the same ratio that clips it.
"""

import torch

from baton.config.algorithm import GrpoConfig
from services.trainer.algorithms.losses import LossOutput, TokenBatch

STD_EPSILON = 1e-6
"""Keeps a group whose rewards are all equal from dividing by zero; its advantages are zero anyway."""

LOG_RATIO_LIMIT = 20.0
"""A larger one says that the sampled log-probability is wrong; its exponential could be infinite, and times zero NaN."""


def group_advantages(
    rewards_S: torch.Tensor, group_mean_S: torch.Tensor, group_std_S: torch.Tensor, config: GrpoConfig
) -> torch.Tensor:
    """Advantages [S] from the statistics that each sample carries of its whole group."""
    centered_S = rewards_S - group_mean_S
    return centered_S / (group_std_S + STD_EPSILON) if config.std_normalization else centered_S


def grpo_loss(logprobs_N: torch.Tensor, entropies_N: torch.Tensor, batch: TokenBatch, config: GrpoConfig) -> LossOutput:
    """Clipped policy-gradient loss; `logprobs_N` carries the gradient."""
    log_ratio_N = (logprobs_N - batch.rollout_logprobs_N).clamp(max=LOG_RATIO_LIMIT)
    ratio_N = log_ratio_N.exp()
    clipped_N = ratio_N.clamp(1 - config.clip_ratio_low, 1 + config.clip_ratio_high)
    loss_N = torch.maximum(-batch.advantages_N * ratio_N, -batch.advantages_N * clipped_N)
    if config.dual_clip is not None:
        bounded_N = torch.minimum(loss_N, -batch.advantages_N * config.dual_clip)
        loss_N = torch.where(batch.advantages_N < 0, bounded_N, loss_N)
    weights_N = batch.weights_N
    with torch.no_grad():
        sums = {
            "clip_fraction": ((loss_N != -batch.advantages_N * ratio_N) * weights_N).sum(),
            "entropy": (entropies_N * weights_N).sum(),
            "mismatch_kl": ((ratio_N - 1 - log_ratio_N) * weights_N).sum(),
            "ratio": (ratio_N * weights_N).sum(),
        }
    loss = (loss_N * weights_N).sum()
    return LossOutput(loss, sums | {"loss": loss.detach()})
