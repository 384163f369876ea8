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
    [
        ("", 1),
        ("one two", 2),
        ("one  two", 3),
        ("one\ntwo", 1),
        ("\u4f60\u597d", 3),
        ("say \u4f60\u597d, please", 5),
        ("a\u4f60b", 2),
        ("\u9fa5", 2),
        ("\u9fa6\u3400", 1),
    ],
)
def test_words_are_chinese_characters_and_the_pieces_between_blanks_of_what_is_left(text: str, count: int) -> None:
    assert words(text) == count


def test_two_episodes_of_three_prompts_are_ranked_by_words_as_chatlearn_ranks_them() -> None:
    prompts = ["a b c", "hello", "\u4f60\u597d world", "x y z w q", "\u4f60\u597d\u5417", "one two"]
    lengths = [words(prompt) for prompt in prompts]
    assert lengths == [3, 1, 4, 5, 4, 2]
    windows = [prompts[:3], prompts[3:]]
    assert [window[index] for window in windows for index in ranked([words(prompt) for prompt in window])] == [
        "\u4f60\u597d world", "a b c", "hello", "x y z w q", "\u4f60\u597d\u5417", "one two",
    ]  # fmt: skip
