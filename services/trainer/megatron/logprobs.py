"""Log-probabilities of chosen tokens from vocabulary-parallel logits.

Shape suffixes: N tokens, V this rank's part of the vocabulary.
"""

from typing import Any

import torch
import torch.distributed as dist


class _VocabParallelLogprobs(torch.autograd.Function):
    """log softmax(logits)[target] and the entropy, over a vocabulary that is split over a tensor-parallel group."""

    @staticmethod
    def forward(
        ctx: Any, logits_NV: torch.Tensor, targets_N: torch.Tensor, first_id: int, group: dist.ProcessGroup | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        maximum_N = logits_NV.amax(-1)
        if group is not None:
            dist.all_reduce(maximum_N, dist.ReduceOp.MAX, group=group)
        shifted_NV = logits_NV - maximum_N[:, None]
        probabilities_NV = shifted_NV.exp()
        local_N = targets_N - first_id
        here_N = (local_N >= 0) & (local_N < logits_NV.shape[1])
        local_N = local_N.clamp(0, logits_NV.shape[1] - 1)
        chosen_N = shifted_NV.gather(1, local_N[:, None])[:, 0].masked_fill(~here_N, 0.0)
        # sum of p * logit; a padding logit of -inf has p = 0 and must not make 0 * -inf
        sums = torch.stack([
            probabilities_NV.sum(-1), chosen_N, torch.einsum("nv,nv->n", probabilities_NV, shifted_NV.clamp(min=-1e30))
        ])  # fmt: skip
        if group is not None:
            dist.all_reduce(sums, group=group)
        normalizer_N, chosen_N, weighted_N = sums
        ctx.save_for_backward(probabilities_NV.div_(normalizer_N[:, None]), local_N, here_N)
        log_normalizer_N = normalizer_N.log()
        entropy_N = log_normalizer_N - weighted_N / normalizer_N
        ctx.mark_non_differentiable(entropy_N)
        return chosen_N - log_normalizer_N, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_N: torch.Tensor, _entropy: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        probabilities_NV, local_N, here_N = ctx.saved_tensors
        gradient_NV = probabilities_NV * -grad_N[:, None]
        gradient_NV.scatter_add_(1, local_N[:, None], (grad_N * here_N)[:, None])
        return gradient_NV, None, None, None


def vocab_parallel_logprobs(
    logits_NV: torch.Tensor, targets_N: torch.Tensor, *, first_id: int = 0, group: dist.ProcessGroup | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (log-probabilities [N], entropies [N], no gradient) in float32, for `targets_N` among `logits_NV`.

    `first_id` is the token id of this rank's first column; `group` is None for an unsplit vocabulary.
    """
    return _VocabParallelLogprobs.apply(logits_NV.float(), targets_N, first_id, group)
