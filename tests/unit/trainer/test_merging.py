"""Merged micro-batches hold the same samples in the same order, within a budget of tokens that are computed."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from baton.clients.buffer import MicroBatch
from baton.samples import Ragged, Samples
from services.trainer.merging import fed_tokens, merged
from services.trainer.packing import pack

PAIRS = st.tuples(st.sampled_from([[1], [1, 2], [1, 2, 3], [4, 4]]), st.lists(st.integers(0, 9), max_size=5))
BATCHES = st.lists(st.lists(PAIRS, min_size=1, max_size=4), max_size=8)


def batches_of(batches: list[list[tuple[list[int], list[int]]]]) -> list[MicroBatch]:
    """Every third sample repeats another."""
    made, count = [], 0
    for pairs in batches:
        numbers = range(count, count + len(pairs))
        count += len(pairs)
        samples = Samples(
            sample_ids=[str(number) for number in numbers],
            prompt_ids=Ragged.of([prompt for prompt, _ in pairs], np.int32),
            response_ids=Ragged.of([response for _, response in pairs], np.int32),
        )
        made.append(MicroBatch("lease", samples, np.array([number % 3 == 0 for number in numbers])))
    return made


def content(batches: list[MicroBatch]) -> list[tuple[str, list[int], list[int], bool]]:
    return [
        (name, prompt.tolist(), response.tolist(), bool(wrapped))
        for batch in batches
        for name, prompt, response, wrapped in zip(
            batch.samples.sample_ids, batch.samples.prompt_ids.rows(), batch.samples.response_ids.rows(), batch.wrapped,
            strict=True,
        )
    ]  # fmt: skip


@given(BATCHES, st.integers(1, 40), st.booleans())
def test_merging_changes_no_sample_and_no_order_and_keeps_to_the_budget(batches: list, budget: int, share: bool) -> None:
    leased = batches_of(batches)
    rows = merged(leased, budget, share_prefix=share)
    assert content(rows) == content(leased)
    for row in rows:
        alone = any(row is batch for batch in leased)
        assert alone or fed_tokens(row.samples, share_prefix=share) <= budget


@given(BATCHES, st.integers(1, 40))
def test_no_row_could_take_the_next_ones_first_micro_batch_and_save_a_row(batches: list, budget: int) -> None:
    leased = batches_of(batches)
    sizes = [fed_tokens(batch.samples, share_prefix=False) for batch in leased]
    fewest, room = 0, 0
    for size in sizes:  # filling each row as far as it goes takes the fewest
        fewest, room = (fewest, room - size) if size <= room else (fewest + 1, budget - size)
    assert len(merged(leased, budget, share_prefix=False)) == fewest


@given(st.lists(PAIRS, min_size=1, max_size=8), st.booleans())
def test_the_budget_counts_what_a_packed_row_holds(pairs: list, share: bool) -> None:
    samples = batches_of([pairs])[0].samples
    assert fed_tokens(samples, share_prefix=share) == len(pack(samples, share_prefix=share).tokens_T)


def test_a_shared_prompt_counts_once() -> None:
    group = [([1, 2, 3], [5, 6])] * 4
    assert fed_tokens(batches_of([group])[0].samples, share_prefix=True) == 3 + 4
    assert len(merged(batches_of([group, group]), 14, share_prefix=True)) == 1
    assert len(merged(batches_of([group, group]), 14, share_prefix=False)) == 2


def test_rows_are_as_equal_as_their_number_allows() -> None:
    rows = merged(batches_of([[([1], [2, 3, 4])]] * 6), 15, share_prefix=False)  # 3 tokens each: 5 would fit into the first
    assert [len(row.samples) for row in rows] == [3, 3]
