"""Packed rows: whatever is shared or laid side by side, every prediction sees what it would see alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import InvalidRequestError
from baton.samples import Ragged, Samples
from services.trainer.packing import PackedBatch, Segment, pack, padded, segment_mask

TOKENS = st.integers(0, 9)
PROMPTS = st.sampled_from([[1], [1, 2], [1, 2, 3], [4, 4]])  # few, so that equal ones often follow each other
SAMPLES = st.lists(st.tuples(PROMPTS, st.lists(TOKENS, max_size=5)), min_size=1, max_size=8)


def samples_of(pairs: list[tuple[list[int], list[int]]], temperatures: list[float] | None = None) -> Samples:
    return Samples(
        sample_ids=[f"s{i}" for i in range(len(pairs))],
        prompt_ids=Ragged.of([prompt for prompt, _ in pairs], np.int32),
        response_ids=Ragged.of([response for _, response in pairs], np.int32),
        temperatures=None if temperatures is None else np.array(temperatures, np.float32),
    )


def visible(batch: PackedBatch) -> torch.Tensor:
    """Boolean [T, T]: what each packed token may attend to, as the attention layer reads segments and masks."""
    allowed = torch.zeros(len(batch.tokens_T), len(batch.tokens_T), dtype=torch.bool)
    for segment in batch.segments:
        part = slice(segment.start, segment.start + segment.length)
        mask = segment_mask(segment, torch.device("cpu"))
        causal = torch.ones(segment.length, segment.length, dtype=torch.bool).tril()
        allowed[part, part] = causal if mask is None else mask
    return allowed


ROWS = st.sampled_from([{}, {"share_prefix": False}, {"pad_samples": True}])


@given(SAMPLES, ROWS, st.integers(1, 4))
def test_every_prediction_sees_its_prompt_and_the_response_before_it_and_nothing_else(
    pairs: list, options: dict, multiple: int
) -> None:
    batch = padded(pack(samples_of(pairs), **options), multiple)
    allowed = visible(batch)
    predictions = [
        (prompt + response[:j], response[j], i) for i, (prompt, response) in enumerate(pairs) for j in range(len(response))
    ]
    assert len(batch.target_rows_N) == len(predictions)
    for n, (context, target, sample) in enumerate(predictions):
        seen = allowed[batch.target_rows_N[n]]
        assert batch.tokens_T[seen].tolist() == context
        assert batch.positions_T[seen].tolist() == list(range(len(context)))
        assert int(batch.target_rows_N[n]) == int(seen.nonzero().max()), "a token must see itself last"
        assert (int(batch.target_ids_N[n]), int(batch.sample_of_N[n])) == (target, sample)


@given(SAMPLES)
def test_sharing_prompts_changes_no_target_and_never_adds_tokens(pairs: list) -> None:
    shared, apart = (pack(samples_of(pairs), share_prefix=share) for share in (True, False))
    for name in ("target_ids_N", "sample_of_N", "temperatures_N"):
        assert torch.equal(getattr(shared, name), getattr(apart, name))
    for name in ("tokens_T", "positions_T"):
        assert torch.equal(getattr(shared, name)[shared.target_rows_N], getattr(apart, name)[apart.target_rows_N])
    assert len(shared.tokens_T) <= len(apart.tokens_T)


@given(SAMPLES, ROWS, st.integers(1, 4))
def test_segments_lie_end_to_end_and_cover_the_row(pairs: list, options: dict, multiple: int) -> None:
    batch = padded(pack(samples_of(pairs), **options), multiple)
    ends = [segment.start + segment.length for segment in batch.segments]
    assert [segment.start for segment in batch.segments] == [0, *ends[:-1]]
    assert ends[-1] == len(batch.tokens_T) == len(batch.positions_T)


def test_prompts_are_merged_only_where_equal_ones_follow_each_other() -> None:
    a, b = [1, 2], [1, 2, 3]
    batch = pack(samples_of([(a, [5, 6]), (a, [7]), (b, [8, 9]), (a, [5, 6])]))
    assert batch.segments == (Segment(0, 2, (1, 0)), Segment(3, 3, (1,)), Segment(7, 2, (1,)))
    assert batch.tokens_T.tolist() == [1, 2, 5, 1, 2, 3, 8, 1, 2, 5]


def test_a_padded_row_has_the_least_number_of_tokens_that_is_a_multiple() -> None:
    batch = pack(samples_of([([1, 2], [5, 6, 7])]))
    assert [len(padded(batch, multiple).tokens_T) for multiple in (1, 2, 3, 5)] == [4, 4, 6, 5]
    assert padded(batch, 2) is batch


def test_padded_samples_are_all_as_long_as_the_longest() -> None:
    batch = pack(samples_of([([1, 2], [5, 6, 7]), ([1, 2], [8]), ([3], [4, 5])]), pad_samples=True)
    assert batch.segments == (Segment(0, 2, (2,)), Segment(4, 2, (2,)), Segment(8, 1, (3,)))
    assert batch.tokens_T.tolist() == [1, 2, 5, 6, 1, 2, 0, 0, 3, 4, 0, 0]
    assert batch.last_rows_S.tolist() == [3, 5, 9]


def test_the_last_token_of_a_response_is_not_fed() -> None:
    batch = pack(samples_of([([1, 2], [5, 6, 7])]))
    assert batch.tokens_T.tolist() == [1, 2, 5, 6]


def test_a_response_of_one_token_is_predicted_by_its_prompts_last_token() -> None:
    batch = pack(samples_of([([3], [4]), ([1, 2], [5])]))
    assert batch.target_rows_N.tolist() == [0, 2]
    assert batch.tokens_T.tolist() == [3, 1, 2]


def test_an_empty_response_is_not_predicted_and_shifts_no_other_sample() -> None:
    batch = pack(samples_of([([1], [5, 6]), ([1], []), ([1], [7, 8])]))
    assert batch.segments == (Segment(0, 1, (1, 0, 1)),)
    assert batch.sample_of_N.tolist() == [0, 0, 2, 2]
    assert batch.target_rows_N.tolist() == [0, 1, 0, 2]


def test_greedy_samples_are_scored_at_temperature_one_and_others_at_their_own() -> None:
    batch = pack(samples_of([([1], [5, 6]), ([1], [7])], temperatures=[0.0, 0.7]))
    assert batch.temperatures_N.tolist() == pytest.approx([1.0, 1.0, 0.7])


def test_without_temperatures_all_tokens_are_scored_at_one() -> None:
    assert pack(samples_of([([1], [5, 6])])).temperatures_N.tolist() == [1.0, 1.0]


def test_an_empty_prompt_is_refused_naming_the_sample() -> None:
    with pytest.raises(InvalidRequestError, match="sample s1 has an empty prompt"):
        pack(samples_of([([1], [5]), ([], [6])]))


@given(st.integers(1, 4), st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_the_mask_is_causal_and_parts_the_responses(prompt: int, branches: list[int]) -> None:
    segment = Segment(7, prompt, tuple(branches))
    owner = [None] * prompt + [index for index, size in enumerate(branches) for _ in range(size)]
    expected = [[c <= r and owner[c] in (None, owner[r]) for c in range(len(owner))] for r in range(len(owner))]
    mask = segment_mask(segment, torch.device("cpu"))
    if mask is None:
        mask = torch.ones(segment.length, segment.length, dtype=torch.bool).tril()
    assert mask.tolist() == expected


def test_one_response_needs_no_mask_so_that_the_fused_causal_kernel_is_used() -> None:
    assert segment_mask(Segment(0, 3, (2,)), torch.device("cpu")) is None
