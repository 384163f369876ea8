"""Attention over a packed row by the flash kernels, for sequences of unequal length.

On CUDA, in 16 bits, one call takes all sequences; on a CPU each sequence is a call (`kernels_on_cpu.py`). A segment without
shared prompt is one causal sequence. One with several responses is parted: its prompt and each of its responses are causal
sequences of their own, and a second call lets all its responses look at its prompt. A softmax over two sets of keys is the
mean of the softmaxes over each, weighted by their normalisers, so the two outputs are merged by their log-sum-exp; the
kernels' backward pass asks for nothing but the merged output and log-sum-exp, which makes each call's gradients those of
the whole.

Shape suffixes: T packed tokens, Q tokens of responses to shared prompts, K tokens of shared prompts.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self

import torch

from services.trainer.megatron import kernels_on_cpu
from services.trainer.megatron.fusion import fused_on_cuda
from services.trainer.packing import Segment


@dataclass(frozen=True, slots=True)
class Sequences:
    """Sequences that lie end to end: their lengths, int32 offsets, and the longest length."""

    lengths: tuple[int, ...]
    offsets: torch.Tensor
    longest: int

    @classmethod
    def of(cls, lengths: list[int], device: torch.device) -> Self:
        """From lengths."""
        offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        return cls(tuple(lengths), offsets, max(lengths))


@dataclass(frozen=True, slots=True)
class Shared:
    """Responses that look at prompts which are not in their own sequence."""

    rows_Q: torch.Tensor
    queries: Sequences
    rows_K: torch.Tensor
    keys: Sequences


@dataclass(frozen=True, slots=True)
class Parts:
    """A packed row as the kernels take it."""

    own: Sequences
    shared: Shared | None

    @classmethod
    def of(cls, segments: tuple[Segment, ...], device: torch.device) -> Self:
        """Parts the segments that have several responses."""
        own, queries, keys, rows_Q, rows_K = [], [], [], [], []
        for segment in segments:
            middle, end = segment.start + segment.prompt, segment.start + segment.length
            if len(segment.branches) == 1 or middle == end:
                own.append(segment.length)
                continue
            own += [segment.prompt, *(size for size in segment.branches if size)]
            queries.append(end - middle)
            keys.append(segment.prompt)
            rows_Q.append(torch.arange(middle, end))
            rows_K.append(torch.arange(segment.start, middle))
        shared = None
        if queries:
            shared = Shared(
                torch.cat(rows_Q).to(device), Sequences.of(queries, device), torch.cat(rows_K).to(device),
                Sequences.of(keys, device),
            )  # fmt: skip
        return cls(Sequences.of(own, device), shared)


def supports(query: torch.Tensor) -> bool:
    """Whether the kernels take such a tensor."""
    size = query.shape[-1]
    if not query.is_cuda:
        return query.dtype in (torch.float32, torch.float64, torch.bfloat16)
    return query.dtype in (torch.bfloat16, torch.float16) and size % 8 == 0 and size <= 256


def _forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, queries: Sequences, keys: Sequences, causal: bool, scale: float | None
) -> tuple[torch.Tensor, ...]:
    """Output [.., heads, D], log-sum-exp [heads, ..], and what else the backward pass wants again."""
    if not q.is_cuda:
        return kernels_on_cpu.forward(q, k, v, queries.lengths, keys.lengths, causal, scale)
    lengths = (queries.offsets, keys.offsets, queries.longest, keys.longest)
    return torch.ops.aten._flash_attention_forward(q, k, v, *lengths, 0.0, causal, False, scale=scale)[:4]


def _backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, output: torch.Tensor, lse: torch.Tensor,
    random: tuple[torch.Tensor, ...], queries: Sequences, keys: Sequences, causal: bool, scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    if not q.is_cuda:
        return kernels_on_cpu.backward(grad, q, k, v, output, lse, queries.lengths, keys.lengths, causal, scale)
    lengths = (queries.offsets, keys.offsets, queries.longest, keys.longest)
    return torch.ops.aten._flash_attention_backward(
        grad, q, k, v, output, lse, *lengths, 0.0, causal, *random, scale=scale
    )


@fused_on_cuda()
def _merged(
    mine: torch.Tensor, theirs: torch.Tensor, my_lse: torch.Tensor, their_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and log-sum-exp over the keys of both."""
    lse = torch.logaddexp(my_lse, their_lse)
    my_share, their_share = ((part - lse).exp().t()[..., None] for part in (my_lse, their_lse))
    return (mine * my_share + theirs * their_share).to(mine.dtype), lse


class _VarlenAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, parts: Parts, scale: float | None
    ) -> torch.Tensor:
        output, lse, *random = _forward(q, k, v, parts.own, parts.own, True, scale)
        random_shared = []
        if (shared := parts.shared) is not None:
            rows = shared.rows_Q
            other, other_lse, *random_shared = _forward(
                q[rows], k[shared.rows_K], v[shared.rows_K], shared.queries, shared.keys, False, scale
            )
            output[rows], lse[:, rows] = _merged(output[rows], other, lse[:, rows], other_lse)
        ctx.parts, ctx.scale = parts, scale
        ctx.save_for_backward(q, k, v, output, lse, *random, *random_shared)
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, output, lse, *random = ctx.saved_tensors
        parts, scale = ctx.parts, ctx.scale
        half = len(random) // 2 if parts.shared else len(random)
        dq, dk, dv = _backward(grad, q, k, v, output, lse, random[:half], parts.own, parts.own, True, scale)
        if (shared := parts.shared) is not None:
            rows, keys = shared.rows_Q, shared.rows_K
            dq_shared, dk_shared, dv_shared = _backward(
                grad[rows], q[rows], k[keys], v[keys], output[rows], lse[:, rows].contiguous(), random[half:],
                shared.queries, shared.keys, False, scale,
            )  # fmt: skip
            dq.index_add_(0, rows, dq_shared)
            dk.index_add_(0, keys, dk_shared)
            dv.index_add_(0, keys, dv_shared)
        return dq, dk, dv, None, None


def varlen_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, parts: Parts, scale: float | None
) -> torch.Tensor:
    """`q` [T, heads, D], `k` and `v` [T, KV heads, D] -> [T, heads, D]."""
    if not q.is_cuda and q.dtype is torch.bfloat16 and parts.own.longest < kernels_on_cpu.SHORT:
        return _VarlenAttention.apply(q.float(), k.float(), v.float(), parts, scale).to(q.dtype)
    return _VarlenAttention.apply(q, k, v, parts, scale)
