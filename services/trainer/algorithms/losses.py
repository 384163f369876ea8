"""What every token-level loss takes and returns.

Shape suffixes: N response tokens of a micro-batch, S its samples, P its pairs.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """What is known of the tokens before the forward pass; all float32 [N] unless said otherwise."""

    rollout_logprobs_N: torch.Tensor
    """Of the distribution that was sampled from."""
    old_logprobs_N: torch.Tensor
    """Of the weights that sampled, over the whole vocabulary at the sample's temperature, as the rollout engine computed
    them: the rollout's, unless top-p, top-k or penalties cut its distribution."""
    advantages_N: torch.Tensor
    weights_N: torch.Tensor
    """Each token's share of the loss. They sum to `weights_total` over the global batch, whatever way it is split."""
    sample_of_N: torch.Tensor
    """Index of each token's sample in the micro-batch, which holds all tokens of its samples: int64."""
    reference_logprobs_N: torch.Tensor | None = None
    """Of the reference model."""
    weights_total: float = 1.0
    """1, unless the loss is no mean."""

    @property
    def shares_N(self) -> torch.Tensor:
        """Weights of a mean: what is reported is one."""
        return self.weights_N / self.weights_total


LOG_RATIO_LIMIT = 20.0
"""A larger one says that the sampled log-probability is wrong; its exponential could be infinite, and times zero NaN."""


@dataclass(frozen=True, slots=True)
class LossOutput:
    """`loss` is this micro-batch's part of the global loss; `sums` are weighted sums that add up over micro-batches."""

    loss: torch.Tensor
    sums: dict[str, torch.Tensor]


def token_weights(
    mask_N: torch.Tensor, sample_of_N: torch.Tensor, samples: int, *, normalization: str, total: float
) -> torch.Tensor:
    """Shares of the loss: "token" gives every token 1 / total tokens; "sequence" every sample 1 / total samples, spread
    evenly over its tokens. `total` counts over the global batch; `samples` is the number in this micro-batch."""
    if normalization == "token":
        return mask_N / total
    lengths_S = sample_sums(mask_N, sample_of_N, samples)
    return mask_N / (lengths_S.clamp(min=1)[sample_of_N] * total)


def sample_sums(values_N: torch.Tensor, sample_of_N: torch.Tensor, samples: int) -> torch.Tensor:
    """Each sample's sum over its tokens [S]; 0 for a sample without tokens."""
    return values_N.new_zeros(samples).index_add(0, sample_of_N, values_N)


def sample_means(values_N: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
    """For each token the mean of its sample's tokens that enter the loss [N]; 0 where none does."""
    enters_N = batch.weights_N > 0
    size = int(batch.sample_of_N[-1]) + 1 if len(batch.sample_of_N) else 0
    entering_N = torch.where(enters_N, values_N, 0.0)  # what an unscored token holds may be infinite
    sums_S = sample_sums(entering_N, batch.sample_of_N, size)
    counts_S = sample_sums(enters_N.to(values_N.dtype), batch.sample_of_N, size)
    return (sums_S / counts_S.clamp(min=1))[batch.sample_of_N]
