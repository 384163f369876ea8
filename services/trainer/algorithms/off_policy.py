"""Samples that are not from the policy as it is: three log-probabilities of one token, and two ratios between them.

    what was sampled from  ──sampling weight──▶  old policy  ──ratio, clipped──▶  policy
    rollout_logprobs                             old_logprobs                     logprobs, with gradient

The sampling weight is 1 if the rollout sampled from its whole distribution: the old policy is then what was sampled from,
and the ratio alone corrects a sample's age and the engines' rounding (docs/adr/0008). Where top-p, top-k or penalties cut
the distribution, the weight is what they kept of it, and the ratio still begins at one.
The product of both is the token's importance weight, policy over what sampled it, which is truncated (Espeholt et al. 2018,
arXiv:1802.01561; Yao et al. 2025): so a token that became far likelier does not outweigh all others.
"""

from dataclasses import dataclass

import torch

from baton.config.policy_gradient import OffPolicyConfig
from services.trainer.algorithms.losses import LOG_RATIO_LIMIT, TokenBatch, sample_means


@dataclass(frozen=True, slots=True)
class Ratios:
    """The ratios of a micro-batch's tokens, all [N]. Only `log_ratio_N` carries a gradient."""

    log_ratio_N: torch.Tensor
    """log(policy / old policy), never beyond LOG_RATIO_LIMIT."""
    log_sampling_N: torch.Tensor
    """log(old policy / what was sampled from), likewise; 0 for tokens outside the loss."""
    log_drift_N: torch.Tensor
    """log(policy / the weights that sampled), likewise: age and rounding, whatever `old_policy` says."""
    kept_N: torch.Tensor
    """1.0, or 0.0 for all tokens of a response that is left out."""


def ratios(logprobs_N: torch.Tensor, batch: TokenBatch, config: OffPolicyConfig) -> Ratios:
    """What the loss of a token is made of."""
    enters_N = batch.weights_N > 0
    present_N = logprobs_N.detach()
    old_N = present_N if config.old_policy == "step" else batch.old_logprobs_N
    log_drift_N = (present_N - batch.old_logprobs_N).clamp(max=LOG_RATIO_LIMIT)
    log_sampling_N = torch.where(enters_N, old_N - batch.rollout_logprobs_N, 0.0)
    return Ratios(
        log_ratio_N=(logprobs_N - old_N).clamp(max=LOG_RATIO_LIMIT),
        log_sampling_N=log_sampling_N.clamp(max=LOG_RATIO_LIMIT),
        log_drift_N=log_drift_N,
        kept_N=_kept(log_drift_N, batch, config),
    )


def _kept(log_drift_N: torch.Tensor, batch: TokenBatch, config: OffPolicyConfig) -> torch.Tensor:
    """Responses whose geometric mean of policy over sampling weights lies within the limits. The others' part of the loss
    is 0; the normaliser still counts them, since it is fixed before the forward pass."""
    mean_N = sample_means(log_drift_N, batch).exp()
    low = 0.0 if config.reject_below is None else config.reject_below
    high = torch.inf if config.reject_above is None else config.reject_above
    return ((mean_N >= low) & (mean_N <= high)).to(log_drift_N.dtype)


def truncated(log_weight_N: torch.Tensor, cap: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(importance weight, at most `cap`; where it is truncated) of tokens or of responses.

    Beyond the cap the weight's value stays, and so does the size of its gradient: the policy gradient goes on with the cap
    for a weight.
    """
    weight_N = log_weight_N.exp()
    if cap is None:
        return weight_N, torch.zeros_like(weight_N, dtype=torch.bool)
    beyond_N = weight_N > cap
    return torch.where(beyond_N, cap * (log_weight_N - log_weight_N.detach()).exp(), weight_N), beyond_N
