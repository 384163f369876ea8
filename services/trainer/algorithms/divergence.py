"""How far the policy is from the reference: Schulman's estimators of KL(policy || reference) on sampled tokens.

With d = log policy - log reference of the sampled token: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d.
"""

import torch

from services.trainer.algorithms.losses import LOG_RATIO_LIMIT, TokenBatch


def divergences(logprobs_N: torch.Tensor, batch: TokenBatch, estimator: str) -> torch.Tensor:
    """The estimate for each token [N], with gradient; 0 for tokens outside the loss."""
    d_N = torch.where(batch.weights_N > 0, logprobs_N - batch.reference_logprobs_N, 0.0)
    if estimator == "k1":
        return d_N
    if estimator == "k2":
        return d_N.square() / 2
    return (-d_N).clamp(max=LOG_RATIO_LIMIT).exp() - 1 + d_N


def reference_kl(logprobs_N: torch.Tensor, batch: TokenBatch) -> dict[str, torch.Tensor]:
    """What is reported if there is a reference: k3, as a mean over tokens."""
    if batch.reference_logprobs_N is None:
        return {}
    return {"reference_kl": (divergences(logprobs_N.detach(), batch, "k3") * batch.shares_N).sum()}
