"""The calls into which CUDA's attention parts a row give masked attention, whatever is long, short or shared in it.

A kernel for sequences of unequal lengths runs on CUDA only; here test_varlen's arithmetic stands in for it.
"""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_varlen import backward, forward, masked

from services.trainer.megatron import attention, varlen
from services.trainer.megatron.attention import PackedAttention, calls_of, room
from services.trainer.packing import Segment

LONG = 33
ROWS = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 60), st.tuples(st.integers(0, 60))),
        st.tuples(st.integers(1, 40), st.lists(st.integers(0, 9), min_size=2, max_size=3).map(tuple)),
    ),
    min_size=1, max_size=5,
)  # fmt: skip


def segments_of(row: list[tuple[int, tuple[int, ...]]]) -> tuple[Segment, ...]:
    segments, start = [], 0
    for prompt, branches in row:
        segments.append(Segment(start, prompt, branches))
        start += segments[-1].length
    return tuple(segments)


@given(ROWS)
@example([(40, (30,)), (5, (3,)), (9, (4, 0, 2)), (33, (0,)), (2, (7,))])
@example([(48, (0,)), (20, (27,)), (40, (8,)), (5, (3,))])
@example([(40, (0,)), (20, (20,))])
@settings(max_examples=25, deadline=None)
def test_long_short_and_shared_segments_together_are_masked_attention(row: list) -> None:
    segments = segments_of(row)
    tokens = segments[-1].start + segments[-1].length
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(tokens, heads, 8, generator=generator, dtype=torch.float64) for heads in (4, 2, 2)]
    gradient = torch.randn(tokens, 4, 8, generator=generator, dtype=torch.float64)
    ours, exact = ([leaf.clone().requires_grad_() for leaf in leaves] for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen, "_forward", forward)
        patch.setattr(varlen, "_backward", backward)
        patch.setattr(attention, "LONG", LONG)
        calls = calls_of(segments, torch.device("cpu"))
        output = PackedAttention(SimpleNamespace())._on_cuda(*ours, calls)
        gradients = torch.autograd.grad(output, ours, gradient)
    expected = masked(*exact, segments)
    torch.testing.assert_close(output, expected)
    for mine, theirs in zip(gradients, torch.autograd.grad(expected, exact, gradient), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_only_long_segments_of_one_sample_get_a_call_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "LONG", LONG)
    row = segments_of([(1, (2,)), (1, (3,)), (30, (3,)), (40, (40, 40)), (2, (30,)), (50, (0,))])
    calls = calls_of(row, torch.device("cpu"))
    assert [(call.tokens, call.parts is None) for call in calls] == [(7, False), (33, True), (152, False), (50, True)]


def test_long_segments_of_about_one_length_share_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "LONG", LONG)
    calls = calls_of(segments_of([(40, (0,)), (30, (9,)), (40, (1,)), (60, (0,)), (40, (0,))]), torch.device("cpu"))
    assert [call.lengths for call in calls] == [(40, 39), (41,), (60,), (40,)]


@given(st.integers(LONG, 1 << 20))
def test_a_long_segment_is_lengthened_by_a_sixteenth_at_most(tokens: int) -> None:
    assert tokens <= room(tokens) <= tokens * 17 / 16


def test_few_lengths_occur_between_two_powers_of_two() -> None:
    assert len({room(tokens) for tokens in range(2049, 4097)}) == 16
