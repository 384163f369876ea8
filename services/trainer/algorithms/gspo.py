"""Group sequence policy optimisation (Zheng et al. 2025, arXiv:2507.18071): one clipped ratio for a whole response.

The ratio is the geometric mean of the tokens', so that its scale does not depend on the response's length.
"""

import torch

from baton.config.algorithm import GspoConfig
from services.trainer.algorithms.losses import LossOutput, TokenBatch, health, log_ratios


def gspo_loss(logprobs_N: torch.Tensor, entropies_N: torch.Tensor, batch: TokenBatch, config: GspoConfig) -> LossOutput:
    """Clipped policy-gradient loss on sequence ratios; `logprobs_N` carries the gradient."""
    log_ratio_N = log_ratios(logprobs_N, batch)
    ratio_N = _sequence_means(log_ratio_N, batch).exp()
    clipped_N = ratio_N.clamp(1 - config.clip_ratio_low, 1 + config.clip_ratio_high)
    plain_N = -batch.advantages_N * ratio_N
    loss_N = torch.maximum(plain_N, -batch.advantages_N * clipped_N)
    loss = (loss_N * batch.weights_N).sum()
    sums = health(log_ratio_N, loss_N != plain_N, entropies_N, batch.weights_N)
    return LossOutput(loss, sums | {"loss": loss.detach()})


def _sequence_means(log_ratio_N: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
    """Each token's sample's mean over the tokens that enter the loss [N]; 0 where none does."""
    enters_N = batch.weights_N > 0
    entering_N = torch.where(enters_N, log_ratio_N, 0.0)  # an unscored token's ratio may be infinite
    size = int(batch.sample_of_N[-1]) + 1 if len(batch.sample_of_N) else 0
    sums_S = log_ratio_N.new_zeros(size).index_add(0, batch.sample_of_N, entering_N)
    counts_S = log_ratio_N.new_zeros(size).index_add(0, batch.sample_of_N, enters_N.to(log_ratio_N.dtype))
    return (sums_S / counts_S.clamp(min=1))[batch.sample_of_N]
