"""The order of prompts in static batches, and its padding."""

import numpy as np
import pytest

from services.static_rollout.ranking import batches, padded_share, padded_tokens, ranked, words


@pytest.mark.parametrize(
    ("lengths", "order"),
    [([3, 1, 2, 3], [0, 3, 2, 1]), ([], []), ([5], [0]), ([2, 2, 2], [0, 1, 2]), ([1, 2, 3], [2, 1, 0])],
)
def test_the_longest_comes_first_and_equal_lengths_keep_their_order(lengths: list[int], order: list[int]) -> None:
    assert ranked(lengths) == order


def test_batches_hold_the_order_and_the_last_one_what_is_left() -> None:
    assert list(batches([4, 2, 0, 1, 3], 2)) == [[4, 2], [0, 1], [3]]
    assert list(batches([], 2)) == []


def test_padding_is_what_each_batch_lacks_to_its_longest_row() -> None:
    lengths = [3, 1, 2, 3]
    assert padded_tokens(lengths, [0, 1, 2, 3], 2) == 2 + 1
    assert padded_tokens(lengths, ranked(lengths), 2) == 0 + 1
    assert padded_share(lengths, [0, 1, 2, 3], 2) == pytest.approx(3 / 12)
    assert padded_share([], [], 2) == 0.0


@pytest.mark.parametrize("size", [1, 3, 8, 64])
def test_ranking_never_adds_padding(size: int) -> None:
    random = np.random.default_rng(size)
    for _ in range(50):
        lengths = random.integers(1, 200, 64).tolist()
        assert padded_tokens(lengths, ranked(lengths), size) <= padded_tokens(lengths, range(64), size)


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), ("one  two\nthree", 3), ("\u4f60\u597d", 2), ("say \u4f60\u597d, please", 5), ("a\u4f60b", 3)],
)
def test_words_are_chinese_characters_and_what_blanks_separate(text: str, count: int) -> None:
    assert words(text) == count
