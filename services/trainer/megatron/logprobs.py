"""Log-probabilities of chosen tokens from hidden states, without ever holding the logits of a whole vocabulary.

The vocabulary is cut into blocks. The logits of one block are computed, reduced to a few numbers per token, and let go;
the backward pass computes them again. So the head needs BLOCK_BYTES beside its own gradient, whatever the vocabulary.
(Blocks of tokens would need as little, but each would add to the whole head's gradient; a block of the vocabulary writes
its rows of it once.)

Shape suffixes: N tokens, H hidden, V this rank's part of the vocabulary, B one block of it, R rank of a head's adapter.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from services.trainer.megatron.fusion import fused_on_cuda

BLOCK_BYTES = {"cuda": 256 << 20, "cpu": 32 << 20}
"""Size of a block's logits in float32, by device: a GPU wants large products, a CPU what its cache holds."""
_MULTIPLE = 128
"""Blocks of so many columns keep matrix multiplications aligned."""
_LOWEST = -1e30
"""Below every logit, but finite: the difference of two of them must not be NaN."""


@dataclass(frozen=True, slots=True)
class Split:
    """Which part of the vocabulary a rank has."""

    rows: int
    """Rows of the rank's head that are tokens; the rest only make all ranks' heads equal in size."""
    first_id: int = 0
    """Token id of the first row."""
    group: dist.ProcessGroup | None = None
    """The ranks that share the vocabulary. None: this one has all of it."""


def _blocks(tokens: int, vocabulary: int, block_bytes: int) -> Iterator[slice]:
    columns = max(block_bytes // (4 * max(tokens, 1)) // _MULTIPLE, 1) * _MULTIPLE
    return (slice(start, min(start + columns, vocabulary)) for start in range(0, vocabulary, columns))


@fused_on_cuda()
def _absorb(
    logits_NB: torch.Tensor, coldness_N: torch.Tensor, local_N: torch.Tensor, sums: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """Adds a block to (maximum m, sum of exp(x - m), sum of exp(x - m) (x - m), the target's x), each [N].

    `coldness_N` is 1 / temperature: to divide all logits would cost more than the rest. `local_N` is the target's column in
    the block; a target of another block lies outside of it. Overwrites the logits.
    """
    maximum_N, normalizer_N, weighted_N, chosen_N = sums
    x_NB = logits_NB.to(maximum_N.dtype).mul_(coldness_N[:, None])
    new_N = torch.maximum(maximum_N, x_NB.amax(-1))
    here_N, column_N1 = _place(local_N, logits_NB)
    target_N = x_NB.gather(1, column_N1)[:, 0]
    x_NB = x_NB.sub_(new_N[:, None])
    exp_NB = x_NB.exp()
    shift_N = maximum_N - new_N
    scale_N = shift_N.exp()
    return (
        new_N,
        normalizer_N * scale_N + exp_NB.sum(-1),
        (weighted_N + shift_N * normalizer_N) * scale_N + x_NB.mul_(exp_NB).sum(-1),
        torch.where(here_N, target_N, chosen_N),
    )


@fused_on_cuda()
def _gradient(
    logits_NB: torch.Tensor, coldness_N: torch.Tensor, local_N: torch.Tensor, log_normalizer_N: torch.Tensor,
    scaled_N: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Gradient of the block's logits, in their dtype: (1 at the target - probability) * scaled gradient. Overwrites them."""
    gradient_NB = logits_NB.to(scaled_N.dtype).mul_(coldness_N[:, None]).sub_(log_normalizer_N[:, None]).exp_()
    gradient_NB = gradient_NB.mul_(-scaled_N[:, None])
    if logits_NB.is_cuda:  # one pass over the block, in which a scatter could not be
        columns_B = torch.arange(logits_NB.shape[1], device=logits_NB.device)
        gradient_NB = gradient_NB + torch.where(columns_B == local_N[:, None], scaled_N[:, None], 0.0)
    else:
        here_N, column_N1 = _place(local_N, logits_NB)
        gradient_NB.scatter_add_(1, column_N1, torch.where(here_N, scaled_N, 0.0)[:, None])
    return gradient_NB.to(logits_NB.dtype)


def _place(local_N: torch.Tensor, logits_NB: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether the target is in the block [N], and its column, or any if it is not [N, 1]."""
    columns = logits_NB.shape[1]
    return (local_N >= 0) & (local_N < columns), local_N.clamp(0, columns - 1)[:, None]


class _BlockedLogprobs(torch.autograd.Function):
    """log softmax(hidden @ weight.T / temperature)[target] and the entropy, over a vocabulary split over a group."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: torch.Tensor, weight_VH: torch.Tensor, targets_N: torch.Tensor, temperatures_N: torch.Tensor,
        split: Split, block_bytes: int, low_NR: torch.Tensor | None, up_VR: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        local_N, coldness_N = targets_N - split.first_id, 1 / temperatures_N
        zero_N = torch.zeros_like(temperatures_N)
        sums = (zero_N + _LOWEST, zero_N, zero_N, zero_N)
        for block in _blocks(len(hidden_NH), split.rows, block_bytes):
            logits_NB = _logits(hidden_NH, weight_VH, low_NR, up_VR, block)
            sums = _absorb(logits_NB, coldness_N, local_N - block.start, sums)
        maximum_N, normalizer_N, weighted_N, chosen_N = _over_group(sums, split.group)
        log_normalizer_N = maximum_N + normalizer_N.log()
        entropy_N = normalizer_N.log() - weighted_N / normalizer_N
        ctx.save_for_backward(hidden_NH, weight_VH, low_NR, up_VR, coldness_N, local_N, log_normalizer_N)
        ctx.rows, ctx.block_bytes = split.rows, block_bytes
        ctx.mark_non_differentiable(entropy_N)
        return chosen_N - log_normalizer_N, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_N: torch.Tensor, _entropy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_NH, weight_VH, low_NR, up_VR, coldness_N, local_N, log_normalizer_N = ctx.saved_tensors
        scaled_N = grad_N * coldness_N
        hidden_grad_NH = torch.zeros_like(hidden_NH, dtype=grad_N.dtype)
        weight_grad_VH = _rows_of_gradient(weight_VH, ctx.rows) if ctx.needs_input_grad[1] else None  # none if frozen
        low_grad_NR = torch.zeros_like(low_NR, dtype=grad_N.dtype) if low_NR is not None else None
        up_grad_VR = _rows_of_gradient(up_VR, ctx.rows) if up_VR is not None else None
        for block in _blocks(len(hidden_NH), ctx.rows, ctx.block_bytes):
            logits_NB = _logits(hidden_NH, weight_VH, low_NR, up_VR, block)
            gradient_NB = _gradient(logits_NB, coldness_N, local_N - block.start, log_normalizer_N, scaled_N)
            if weight_grad_VH is not None:
                torch.mm(gradient_NB.t(), hidden_NH, out=weight_grad_VH[block])
            hidden_grad_NH += gradient_NB @ weight_VH[block]
            if up_VR is not None:
                torch.mm(gradient_NB.t(), low_NR, out=up_grad_VR[block])
                low_grad_NR += gradient_NB @ up_VR[block]
        low_grad_NR = low_grad_NR.to(low_NR.dtype) if low_NR is not None else None
        return hidden_grad_NH.to(hidden_NH.dtype), weight_grad_VH, None, None, None, None, low_grad_NR, up_grad_VR


def _logits(
    hidden_NH: torch.Tensor, weight_VH: torch.Tensor, low_NR: torch.Tensor | None, up_VR: torch.Tensor | None, block: slice
) -> torch.Tensor:
    logits_NB = hidden_NH @ weight_VH[block].t()
    return logits_NB if up_VR is None else logits_NB.addmm_(low_NR, up_VR[block].t())


def _rows_of_gradient(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """Room for a gradient whose first `rows` rows are to be written."""
    gradient = torch.empty_like(weight)
    gradient[rows:] = 0
    return gradient


def _over_group(sums: tuple[torch.Tensor, ...], group: dist.ProcessGroup | None) -> tuple[torch.Tensor, ...]:
    """The sums of the whole vocabulary from those of each rank's part; the target is on one rank, zero on the others."""
    if group is None:
        return sums
    maximum_N, normalizer_N, weighted_N, chosen_N = sums
    highest_N = maximum_N.clone()
    dist.all_reduce(highest_N, dist.ReduceOp.MAX, group=group)
    shift_N = maximum_N - highest_N
    scale_N = shift_N.exp()
    added = torch.stack([normalizer_N * scale_N, (weighted_N + shift_N * normalizer_N) * scale_N, chosen_N])
    dist.all_reduce(added, group=group)
    return highest_N, *added


def vocab_parallel_logprobs(
    hidden_NH: torch.Tensor, weight_VH: torch.Tensor, targets_N: torch.Tensor, temperatures_N: torch.Tensor, split: Split,
    block_bytes: int | None = None, update: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(log-probabilities [N], entropies [N] without gradient) of `targets_N`, in the dtype of `temperatures_N` (float32).

    `weight_VH` is this rank's part of the head. The gradient of `hidden_NH` is this rank's part of a sum over the group.
    `update` (low [N, R], up [V, R]) adds low @ up.T to the logits; the gradient of low is such a part, too.
    """
    size = block_bytes or BLOCK_BYTES[hidden_NH.device.type]
    return _BlockedLogprobs.apply(hidden_NH, weight_VH, targets_N, temperatures_N, split, size, *(update or (None, None)))
