"""Supervised fine-tuning: the cross-entropy of the tokens that the loss mask keeps."""

import torch

from services.trainer.algorithms.losses import LossOutput


def sft_loss(logprobs_N: torch.Tensor, entropies_N: torch.Tensor, weights_N: torch.Tensor) -> LossOutput:
    """Minus the weighted mean of `logprobs_N`, which carry the gradient; the weights sum to 1 over the global batch."""
    loss = -torch.where(weights_N > 0, logprobs_N * weights_N, 0.0).sum()
    return LossOutput(loss, {"loss": loss.detach(), "entropy": (entropies_N * weights_N).sum()})
