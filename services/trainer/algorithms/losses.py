"""What every token-level loss takes and returns.

Shape suffixes: N response tokens of a micro-batch, S its samples.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """What is known of the tokens before the forward pass; all float32 [N] unless said otherwise."""

    rollout_logprobs_N: torch.Tensor
    """Of the distribution that was sampled from."""
    advantages_N: torch.Tensor
    weights_N: torch.Tensor
    """Each token's share of the loss. They sum to 1 over the global batch, whatever way it is split."""
    sample_of_N: torch.Tensor
    """Index of each token's sample in the micro-batch, which holds all tokens of its samples: int64."""


LOG_RATIO_LIMIT = 20.0
"""A larger one says that the sampled log-probability is wrong; its exponential could be infinite, and times zero NaN."""


def log_ratios(logprobs_N: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
    """log(policy / what sampled the token) [N], with gradient; never beyond LOG_RATIO_LIMIT."""
    return (logprobs_N - batch.rollout_logprobs_N).clamp(max=LOG_RATIO_LIMIT)


@dataclass(frozen=True, slots=True)
class LossOutput:
    """`loss` is this micro-batch's part of the global loss; `sums` are weighted sums that add up over micro-batches."""

    loss: torch.Tensor
    sums: dict[str, torch.Tensor]


def health(
    log_ratio_N: torch.Tensor, clipped_N: torch.Tensor, entropies_N: torch.Tensor, weights_N: torch.Tensor
) -> dict[str, torch.Tensor]:
    """What every policy-gradient loss reports; `clipped_N` says where a clip is active."""
    with torch.no_grad():
        ratio_N = log_ratio_N.exp()
        return {
            "clip_fraction": (clipped_N * weights_N).sum(),
            "entropy": (entropies_N * weights_N).sum(),
            "mismatch_kl": ((ratio_N - 1 - log_ratio_N) * weights_N).sum(),
            "ratio": (ratio_N * weights_N).sum(),
        }


def token_weights(
    mask_N: torch.Tensor, sample_of_N: torch.Tensor, samples: int, *, normalization: str, total: float
) -> torch.Tensor:
    """Shares of the loss: "token" gives every token 1 / total tokens; "sequence" every sample 1 / total samples, spread
    evenly over its tokens. `total` counts over the global batch; `samples` is the number in this micro-batch."""
    if normalization == "token":
        return mask_N / total
    lengths_S = torch.zeros(samples, device=mask_N.device).index_add_(0, sample_of_N, mask_N)
    return mask_N / (lengths_S.clamp(min=1)[sample_of_N] * total)
