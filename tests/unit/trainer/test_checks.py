"""What the trainer refuses before any rank computes; each refusal names the column or the sample."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from baton.errors import DigestMismatchError, InvalidRequestError
from baton.samples import Ragged, Samples
from services.trainer.checks import check_digests, check_fits, require


def samples() -> Samples:
    """Two samples of three and five tokens, of versions 1 and 2."""
    tokens = Ragged.of([[1, 2], [3, 4, 5]], np.int32)
    return Samples(
        ["a", "b"],
        prompt_ids=Ragged.of([[5], [6, 7]], np.int32),
        response_ids=tokens,
        rollout_logprobs=Ragged(np.zeros(5, np.float32), tokens.lengths),
        rewards=np.zeros(2, np.float32),
        reward_status=np.ones(2, np.uint8),
        group_reward_mean=np.zeros(2, np.float32),
        group_reward_std=np.ones(2, np.float32),
        policy_version_max=np.array([1, 2]),
        weights_digests=["one", "two"],
    )


def shape(context: int = 100, tokens: int = 100) -> SimpleNamespace:
    """What is read of a model's shape."""
    return SimpleNamespace(max_positions=context, vocab_size=tokens)


COLUMNS = ("prompt_ids", "rewards", "rollout_logprobs", "weights_digests")


def test_samples_with_all_columns_pass() -> None:
    require(samples(), COLUMNS)


@pytest.mark.parametrize("column", COLUMNS)
def test_an_absent_column_is_named(column: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"lack {column};"):
        require(replace(samples(), **{column: None}), COLUMNS)


def test_a_sample_may_fill_the_context_but_not_exceed_it() -> None:
    check_fits(samples(), shape(context=5))
    with pytest.raises(InvalidRequestError, match="sample b has 5 tokens, more than the model's context of 4"):
        check_fits(samples(), shape(context=4))


def test_an_empty_prompt_is_named() -> None:
    with pytest.raises(InvalidRequestError, match="sample b has an empty prompt"):
        check_fits(replace(samples(), prompt_ids=Ragged.of([[5], []], np.int32)), shape())


@pytest.mark.parametrize(
    ("column", "rows", "told"),
    [
        ("prompt_ids", [[5], [6, 8]], "sample b has the token 8, and the model has tokens 0 to 7"),
        ("response_ids", [[1, 8], [3, 4, 5]], "sample a has the token 8"),
        ("response_ids", [[], [-1, 4, 5]], "sample b has the token -1"),
    ],
)
def test_a_token_that_the_model_does_not_have_is_named(column: str, rows: list[list[int]], told: str) -> None:
    check_fits(samples(), shape(tokens=8))
    with pytest.raises(InvalidRequestError, match=told):
        check_fits(replace(samples(), **{column: Ragged.of(rows, np.int32)}), shape(tokens=8))


def test_samples_of_published_weights_pass_whatever_else_was_published() -> None:
    check_digests(samples(), {0: "", 1: "one", 2: "two", 3: "three"})


@pytest.mark.parametrize(
    ("published", "told"),
    [
        ({1: "one", 2: "other"}, "sample b was sampled from weights two as version 2, .* published other as that version"),
        ({1: "one"}, "sample b was sampled from weights two as version 2, .* published nothing as that version"),
        ({}, "sample a was sampled from weights one as version 1, .* published nothing as that version"),
        ({1: "two", 2: "two"}, "sample a was sampled from weights one as version 1, .* published two as that version"),
    ],
)
def test_another_digest_or_version_is_refused_with_both_digests(published: dict[int, str], told: str) -> None:
    with pytest.raises(DigestMismatchError, match=told):
        check_digests(samples(), published)


@pytest.mark.parametrize("column", ["weights_digests", "policy_version_max"])
def test_samples_that_cannot_be_checked_are_refused_by_column_and_not_waved_through(column: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"lack {column};"):
        check_digests(replace(samples(), **{column: None}), {1: "one", 2: "two"})
