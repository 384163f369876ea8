"""Flash attention of sequences that lie end to end, on a CPU: torch's kernel for one sequence, called for each.

Queries are [Q, heads, D], keys and values [K, KV heads, D]; their n-th sequences belong together.
"""

from collections.abc import Iterator
from itertools import accumulate

import torch

SHORT = 1024
"""Sequences that are all shorter are computed in float32 even in a bfloat16 model: the kernel is then faster by a third at
200 tokens, and not slower until here."""
Lengths = tuple[int, ...]


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, queries: Lengths, keys: Lengths, causal: bool, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [Q, heads, D] and log-sum-exp [heads, Q]."""
    output = torch.empty_like(q)
    lse = torch.empty(q.shape[1], len(q), dtype=torch.promote_types(q.dtype, torch.float32))
    for mine, theirs in _parts(queries, keys):
        output_HQ, lse_HQ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            _batch(q[mine]), _batch(k[theirs]), _batch(v[theirs]), 0.0, causal, scale=scale
        )
        output[mine], lse[:, mine] = output_HQ[0].transpose(0, 1), lse_HQ[0]
    return output, lse


def backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, output: torch.Tensor, lse: torch.Tensor,
    queries: Lengths, keys: Lengths, causal: bool, scale: float | None,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """Gradients of the queries, keys and values."""
    gradients = tuple(torch.empty_like(x) for x in (q, k, v))
    for mine, theirs in _parts(queries, keys):
        parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            _batch(grad[mine]), _batch(q[mine]), _batch(k[theirs]), _batch(v[theirs]), _batch(output[mine]),
            lse[None, :, mine].contiguous(), 0.0, causal, scale=scale,
        )  # fmt: skip
        for whole, part, place in zip(gradients, parts, (mine, theirs, theirs), strict=True):
            whole[place] = part[0].transpose(0, 1)
    return gradients


def _parts(queries: Lengths, keys: Lengths) -> Iterator[tuple[slice, slice]]:
    """Where each sequence's queries and keys are."""
    ends = zip(accumulate(queries), accumulate(keys), queries, keys, strict=True)
    return ((slice(q_end - q, q_end), slice(k_end - k, k_end)) for q_end, k_end, q, k in ends)


def _batch(x: torch.Tensor) -> torch.Tensor:
    """[L, heads, D] as a batch of one [1, heads, L, D]."""
    return x.transpose(0, 1)[None]
