"""Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300): PPO's clipped loss, group-relative advantages.

With it come the variants that are in use: no division by the deviation and a constant length (Dr. GRPO, Liu et al. 2025,
arXiv:2503.20783), a higher upper clip and the mean over tokens (DAPO, Yu et al. 2025, arXiv:2503.14476), and the divergence
from a reference in the loss.
"""

import torch

from baton.config.policy_gradient import GrpoConfig, GspoConfig
from services.trainer.algorithms.clipped import clipped_loss
from services.trainer.algorithms.divergence import divergences, reference_kl
from services.trainer.algorithms.losses import LossOutput, TokenBatch
from services.trainer.algorithms.off_policy import ratios

STD_EPSILON = 1e-6
"""Keeps a group whose rewards are all equal from dividing by zero; its advantages are zero anyway."""


def group_advantages(
    rewards_S: torch.Tensor, group_mean_S: torch.Tensor, group_std_S: torch.Tensor, config: GrpoConfig | GspoConfig
) -> torch.Tensor:
    """Advantages [S] from the statistics that each sample carries of its whole group."""
    centered_S = rewards_S - group_mean_S
    return centered_S / (group_std_S + STD_EPSILON) if config.std_normalization else centered_S


def grpo_loss(logprobs_N: torch.Tensor, entropies_N: torch.Tensor, batch: TokenBatch, config: GrpoConfig) -> LossOutput:
    """Clipped policy-gradient loss, plus `kl_coef` x the divergence; `logprobs_N` carries the gradient."""
    output = clipped_loss(logprobs_N, entropies_N, batch, config, dual_clip=config.dual_clip)
    loss = output.loss
    if config.kl_coef:
        kl_N = divergences(logprobs_N, batch, config.kl_estimator)
        if config.kl_weighting:  # DeepSeek-V3.2, arXiv:2512.02556
            kl_N = kl_N * ratios(logprobs_N, batch, config.off_policy).log_ratio_N.exp()
        loss = loss + config.kl_coef * (kl_N * batch.weights_N).sum()
    return LossOutput(loss, output.sums | reference_kl(logprobs_N, batch) | {"loss": loss.detach()})
