"""PPO's clipped surrogate loss (Schulman et al. 2017, arXiv:1707.06347), which PPO, GRPO and GSPO share.

    loss of a token = sampling weight x max(-A x ratio, -A x clip(ratio, 1 - low, 1 + high))

Where no clip is active, sampling weight x ratio is the token's importance weight, and is truncated (off_policy.py).
"""

import torch

from baton.config.policy_gradient import PolicyGradientConfig
from services.trainer.algorithms.losses import LossOutput, TokenBatch, sample_means
from services.trainer.algorithms.off_policy import Ratios, ratios, truncated


def clipped_loss(
    logprobs_N: torch.Tensor, entropies_N: torch.Tensor, batch: TokenBatch, config: PolicyGradientConfig, *,
    dual_clip: float | None = None, per_response: bool = False,
) -> LossOutput:  # fmt: skip
    """`logprobs_N` carries the gradient. `per_response`: one ratio for all tokens of a response, their geometric mean.

    `dual_clip` bounds the loss of a negative advantage, in multiples of it (Ye et al. 2019, arXiv:1912.09729).
    """
    found = ratios(logprobs_N, batch, config.off_policy)
    log_ratio_N, log_sampling_N = found.log_ratio_N, found.log_sampling_N
    if per_response:
        log_ratio_N, log_sampling_N = sample_means(log_ratio_N, batch), sample_means(log_sampling_N, batch)
    cap, advantages_N = config.off_policy.importance_cap, batch.advantages_N
    importance_N, truncated_N = truncated(log_ratio_N + log_sampling_N, cap)
    sampling_N, _ = truncated(log_sampling_N, cap)
    ratio_N, low, high = log_ratio_N.detach().exp(), 1 - config.clip_ratio_low, 1 + config.clip_ratio_high
    loss_N, clipped_N = -advantages_N * importance_N, torch.zeros_like(truncated_N)
    # each bound, where it is active: PPO's maximum, written without ties, at which two gradients would meet
    bounds = [((advantages_N > 0) & (ratio_N > high), high), ((advantages_N < 0) & (ratio_N < low), low)]
    if dual_clip is not None:
        bounds.append(((advantages_N < 0) & (ratio_N > dual_clip), dual_clip))
    for active_N, bound in bounds:
        loss_N, clipped_N = torch.where(active_N, -advantages_N * bound * sampling_N, loss_N), clipped_N | active_N
    loss = (found.kept_N * loss_N * batch.weights_N).sum()
    return LossOutput(loss, _health(found, clipped_N, truncated_N, entropies_N, batch))


@torch.no_grad()
def _health(
    found: Ratios, clipped_N: torch.Tensor, truncated_N: torch.Tensor, entropies_N: torch.Tensor, batch: TokenBatch
) -> dict[str, torch.Tensor]:
    """What every policy-gradient loss reports: means over the tokens, weighted as the loss is."""
    drift_N = found.log_drift_N
    reported = {
        "clip_fraction": clipped_N.to(drift_N.dtype),
        "truncated_fraction": (truncated_N & ~clipped_N).to(drift_N.dtype),
        "rejected_fraction": 1 - found.kept_N,
        "entropy": entropies_N,
        "mismatch_kl": drift_N.exp() - 1 - drift_N,
        "ratio": found.log_ratio_N.exp(),
        "sampling_weight": found.log_sampling_N.exp(),
    }
    return {name: (values_N * batch.shares_N).sum() for name, values_N in reported.items()}
