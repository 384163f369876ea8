"""Attention over a packed row, in calls of a kernel for sequences that are merged, is attention under the segments' masks.

The kernels are the CPU's; on CUDA others stand in their place (tests/gpu/test_varlen_on_cuda.py).
"""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.trainer.megatron import kernels_on_cpu
from services.trainer.megatron.attention import PackedAttention, PackedLayout, calls_of, room
from services.trainer.megatron.varlen import Parts, varlen_attention
from services.trainer.packing import Segment, segment_mask

LONG, FULL = 33, 33
CPU = torch.device("cpu")
ROWS = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 60), st.tuples(st.integers(0, 60))),
        st.tuples(st.integers(1, 40), st.lists(st.integers(0, 9), min_size=2, max_size=3).map(tuple)),
    ),
    min_size=1, max_size=5,
)  # fmt: skip
"""(prompt, responses) of each segment."""
EXAMPLE = [(40, (30,)), (5, (3,)), (9, (4, 0, 2)), (33, (0,)), (20, (14,)), (3, (0, 0)), (2, (7,))]
Tensors = list[torch.Tensor]


def segments_of(row: list[tuple[int, tuple[int, ...]]]) -> tuple[Segment, ...]:
    """The segments end to end."""
    segments, start = [], 0
    for prompt, branches in row:
        segments.append(Segment(start, prompt, branches))
        start += segments[-1].length
    return tuple(segments)


def leaves(segments: tuple[Segment, ...], dtype: torch.dtype = torch.float64) -> Tensors:
    """Queries of four heads, keys and values of two, and a gradient of the output."""
    tokens, generator = sum(segment.length for segment in segments), torch.Generator().manual_seed(0)
    made = [torch.randn(tokens, heads, 8, generator=generator, dtype=torch.float64).to(dtype) for heads in (4, 2, 2, 4)]
    return [x.requires_grad_() for x in made[:3]] + made[3:]


def with_gradients(output: torch.Tensor, inputs: Tensors) -> Tensors:
    """The output and the gradients of queries, keys and values."""
    return [output.detach(), *torch.autograd.grad(output, inputs[:3], inputs[3])]


def masked(segments: tuple[Segment, ...], inputs: Tensors) -> Tensors:
    """From all products at once, in float64."""
    q, k, v, _ = inputs
    allowed = torch.zeros(len(q), len(q), dtype=torch.bool)
    for segment in segments:
        part = slice(segment.start, segment.start + segment.length)
        mask = segment_mask(segment, CPU)
        allowed[part, part] = torch.ones(segment.length, segment.length).tril().bool() if mask is None else mask
    k, v = (x.double().repeat_interleave(2, 1) for x in (k, v))
    products = torch.einsum("qhd,khd->hqk", q.double(), k) / q.shape[-1] ** 0.5
    output = torch.einsum("hqk,khd->qhd", products.masked_fill(~allowed, -torch.inf).softmax(-1), v)
    return with_gradients(output.to(q.dtype), inputs)


def assert_equal(mine: Tensors, exact: Tensors, **tolerances: float) -> None:
    for ours, theirs in zip(mine, exact, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerances)


@given(ROWS)
@example(EXAMPLE)
@settings(max_examples=40, deadline=None)
def test_the_merged_calls_give_masked_attention_and_its_gradients(row: list) -> None:
    segments = segments_of(row)
    inputs = leaves(segments)
    output = varlen_attention(*inputs[:3], Parts.of(segments, CPU), None)
    assert_equal(with_gradients(output, inputs), masked(segments, inputs))


@given(ROWS)
@example(EXAMPLE)
@settings(max_examples=25, deadline=None)
def test_so_they_do_where_long_segments_have_calls_of_their_own(row: list) -> None:
    segments = segments_of(row)
    inputs = leaves(segments)
    output = PackedAttention(SimpleNamespace())._flash(*inputs[:3], calls_of(segments, CPU, long=LONG, full=FULL))
    assert_equal(with_gradients(output, inputs), masked(segments, inputs))


def test_and_where_there_is_no_flash_kernel() -> None:
    segments = segments_of(EXAMPLE)
    inputs = leaves(segments)
    layout = PackedLayout(segments=segments, angles_TD=torch.zeros(1))
    output = PackedAttention(SimpleNamespace())._masked(*inputs[:3], layout)
    assert_equal(with_gradients(output, inputs), masked(segments, inputs))


@pytest.mark.parametrize("together", [0, 20])
def test_sequences_that_share_a_call_on_a_cpu_are_as_if_alone(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = (3, 40, 16, 17, 1, 20, 33, 21, 16)
    row = [(length, (0,)) for length in lengths]
    monkeypatch.setattr(kernels_on_cpu, "TOGETHER", together)
    kernels_on_cpu._calls.cache_clear()
    calls = kernels_on_cpu._calls(lengths, lengths, True)
    kernels_on_cpu._calls.cache_clear()
    assert len(calls) == (len(lengths) if together == 0 else 5)  # 1 to 16; 17 and 20; 21, 33 and 40 alone
    monkeypatch.setattr(kernels_on_cpu, "_calls", lambda *_: calls)
    segments = segments_of(row)
    inputs = leaves(segments)
    output = varlen_attention(*inputs[:3], Parts.of(segments, CPU), None)
    assert_equal(with_gradients(output, inputs), masked(segments, inputs))


@pytest.mark.parametrize("short", [1, 1024], ids=["in bfloat16", "in float32"])
def test_a_bfloat16_model_gets_bfloat16_whatever_its_kernel_computes_in(
    short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels_on_cpu, "SHORT", short)
    segments = segments_of(EXAMPLE)
    inputs = leaves(segments, torch.bfloat16)
    output = varlen_attention(*inputs[:3], Parts.of(segments, CPU), None)
    assert output.dtype is torch.bfloat16
    assert_equal(with_gradients(output, inputs), masked(segments, inputs), rtol=0.02, atol=0.02)


def calls(row: list[tuple[int, tuple[int, ...]]], *, full: int) -> list[tuple[tuple[int, ...], bool]]:
    """Lengths of each call's segments, and whether they are computed at one length."""
    made = calls_of(segments_of(row), CPU, long=LONG, full=full)
    return [(call.lengths, call.parts is None) for call in made]


def test_only_long_segments_of_one_sample_leave_the_others() -> None:
    row = [(1, (2,)), (1, (3,)), (30, (3,)), (40, (40, 40)), (2, (30,)), (50, (0,))]
    assert calls(row, full=FULL) == [((3, 4), False), ((33,), True), ((120, 32), False), ((50,), True)]


def test_long_segments_of_about_one_length_share_a_call() -> None:
    row = [(40, (0,)), (30, (9,)), (40, (1,)), (60, (0,)), (40, (0,))]
    assert calls(row, full=FULL) == [((40, 39), True), ((41,), True), ((60,), True), ((40,), True)]


def test_a_call_that_would_not_be_full_is_left_to_the_kernel_of_the_others() -> None:
    row = [(40, (0,)), (30, (9,)), (40, (1,)), (60, (0,)), (2, (7,))]
    assert calls(row, full=61) == [((40, 39), True), ((41, 60, 9), False)]


@given(st.integers(LONG, 1 << 20))
def test_a_long_segment_is_lengthened_by_a_sixteenth_at_most(tokens: int) -> None:
    assert tokens <= room(tokens) <= tokens * 17 / 16


def test_few_lengths_occur_between_two_powers_of_two() -> None:
    assert len({room(tokens) for tokens in range(2049, 4097)}) == 16
