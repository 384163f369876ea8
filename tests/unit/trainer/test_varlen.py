"""Parting a packed row into calls of a kernel for sequences, and merging them, is attention under the segments' masks.

The kernels run on CUDA only; here the same arithmetic stands in for them in float64.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.trainer.megatron import varlen
from services.trainer.packing import Segment, segment_mask

SEGMENTS = st.lists(
    st.tuples(st.integers(1, 5), st.lists(st.integers(0, 4), min_size=1, max_size=4)), min_size=1, max_size=4
)  # fmt: skip


def scores(
    q: torch.Tensor, k: torch.Tensor, queries: varlen.Sequences, keys: varlen.Sequences, causal: bool
) -> torch.Tensor:
    """Scaled products [heads, Q, K]; -inf between different sequences, and for what lies ahead."""
    q_of, k_of = (torch.bucketize(torch.arange(len(x)), s.offsets[1:], right=True) for x, s in ((q, queries), (k, keys)))
    q_at, k_at = torch.arange(len(q)) - queries.offsets[q_of], torch.arange(len(k)) - keys.offsets[k_of]
    allowed = q_of[:, None] == k_of[None]
    if causal:
        allowed &= q_at[:, None] >= k_at[None]
    products = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(q.shape[1] // k.shape[1], 1)) / q.shape[-1] ** 0.5
    return products.masked_fill(~allowed, -torch.inf)


def forward(q, k, v, queries, keys, causal, scale):
    lse = scores(q, k, queries, keys, causal).logsumexp(-1)
    weights = (scores(q, k, queries, keys, causal) - lse[..., None]).exp()
    output = torch.einsum("hqk,khd->qhd", weights, v.repeat_interleave(q.shape[1] // v.shape[1], 1))
    return output, lse, torch.empty(0), torch.empty(0)


def backward(grad, q, k, v, output, lse, random, queries, keys, causal, scale):
    """As flash attention does it: from the output and log-sum-exp that it is given, not from its own."""
    repeats = q.shape[1] // k.shape[1]
    weights = (scores(q, k, queries, keys, causal) - lse[..., None]).exp()
    delta = (grad * output).sum(-1).t()[..., None]
    inner = weights * (torch.einsum("qhd,khd->hqk", grad, v.repeat_interleave(repeats, 1)) - delta) / q.shape[-1] ** 0.5
    dq = torch.einsum("hqk,khd->qhd", inner, k.repeat_interleave(repeats, 1))
    dk, dv = torch.einsum("hqk,qhd->khd", inner, q), torch.einsum("hqk,qhd->khd", weights, grad)
    return dq, *(x.unflatten(1, (-1, repeats)).sum(2) for x in (dk, dv))


def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: tuple[Segment, ...]) -> torch.Tensor:
    allowed = torch.zeros(len(q), len(q), dtype=torch.bool)
    for segment in segments:
        part = slice(segment.start, segment.start + segment.length)
        mask = segment_mask(segment, torch.device("cpu"))
        allowed[part, part] = torch.ones(segment.length, segment.length).tril().bool() if mask is None else mask
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    products = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("hqk,khd->qhd", products.masked_fill(~allowed, -torch.inf).softmax(-1), v)


@given(SEGMENTS)
@settings(max_examples=40)
def test_the_merged_calls_give_masked_attention_and_its_gradients(rows: list[tuple[int, list[int]]]) -> None:
    segments, start = [], 0
    for prompt, branches in rows:
        segments.append(Segment(start, prompt, tuple(branches)))
        start += segments[-1].length
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(start, heads, 8, generator=generator, dtype=torch.float64) for heads in (4, 2, 2)]
    gradient = torch.randn(start, 4, 8, generator=generator, dtype=torch.float64)
    ours, exact = ([leaf.clone().requires_grad_() for leaf in leaves] for _ in range(2))
    parts = varlen.Parts.of(tuple(segments), torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen, "_forward", forward)
        patch.setattr(varlen, "_backward", backward)
        output = varlen.varlen_attention(*ours, parts, None)
        gradients = torch.autograd.grad(output, ours, gradient)
    expected = masked(*exact, tuple(segments))
    torch.testing.assert_close(output, expected)
    for mine, theirs in zip(gradients, torch.autograd.grad(expected, exact, gradient), strict=True):
        torch.testing.assert_close(mine, theirs)
