"""A response that was cut off and what came after it make one sample."""

from dataclasses import replace

import numpy as np
import pytest

from baton.errors import InvalidRequestError
from baton.partial import continuations, joined
from baton.samples import FinishReason, Ragged, Samples


def sampled(
    ids: list[str], groups: list[str], prompts: list[list[int]], responses: list[list[int]], version: int
) -> Samples:
    size = len(ids)
    logprobs = Ragged.of([[-0.1 * version] * len(response) for response in responses], np.float32)
    return Samples(
        sample_ids=ids, group_ids=groups, episode_ids=np.full(size, version, np.int64),
        prompt_ids=Ragged.of(prompts, np.int32), response_ids=Ragged.of(responses, np.int32),
        rollout_logprobs=logprobs, model_logprobs=logprobs, uncut_logprobs=logprobs,
        finish_reasons=np.full(size, FinishReason.ABORT if version == 1 else FinishReason.STOP, np.uint8),
        policy_version_min=np.full(size, version, np.int64), policy_version_max=np.full(size, version, np.int64),
        weights_digests=[f"d{version}"] * size, temperatures=np.ones(size, np.float32),
        span_versions=Ragged.of([[version]] * size, np.int64),
        span_tokens=Ragged.of([[len(response)] for response in responses], np.int32),
    )  # fmt: skip


CUT = sampled(["g/0", "g/1"], ["g", "g"], [[5, 6], [5, 6]], [[7], []], version=1)


def rest(*order: int) -> Samples:
    whole = sampled(["g/0/0", "g/1/0"], ["g/0", "g/1"], [[5, 6, 7], [5, 6]], [[8, 9], [10]], version=2)
    return whole.take(list(order))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_each_sample_goes_on_with_its_own_rest_in_whatever_order_that_came(order: tuple[int, ...]) -> None:
    whole = joined(CUT, rest(*order))
    assert (whole.sample_ids, whole.group_ids) == (["g/0", "g/1"], ["g", "g"])
    assert [row.tolist() for row in whole.prompt_ids.rows()] == [[5, 6], [5, 6]]
    assert [row.tolist() for row in whole.response_ids.rows()] == [[7, 8, 9], [10]]
    for column in (whole.rollout_logprobs, whole.model_logprobs, whole.uncut_logprobs):
        np.testing.assert_allclose(column.values, [-0.1, -0.2, -0.2, -0.2], rtol=1e-6)
    assert [row.tolist() for row in whole.span_versions.rows()] == [[1, 2], [1, 2]]
    assert [row.tolist() for row in whole.span_tokens.rows()] == [[1, 2], [0, 1]]
    assert (whole.policy_version_min.tolist(), whole.policy_version_max.tolist()) == ([1, 1], [2, 2])
    assert (whole.weights_digests, whole.episode_ids.tolist()) == (["d2", "d2"], [1, 1])
    assert set(whole.finish_reasons) == {FinishReason.STOP}


@pytest.mark.parametrize("lacking", ["begun", "rest"])
def test_the_uncut_log_probabilities_go_on_also_where_one_part_has_them_in_another_column(lacking: str) -> None:
    begun, further = CUT, rest(0, 1)
    if lacking == "begun":
        begun = replace(begun, uncut_logprobs=None)
    else:
        further = replace(further, uncut_logprobs=None)
    np.testing.assert_allclose(joined(begun, further).uncut_logprobs.values, [-0.1, -0.2, -0.2, -0.2], rtol=1e-6)


def test_a_continuation_is_asked_for_by_the_very_tokens() -> None:
    first, second = continuations(CUT)
    assert (first.group_id, first.token_ids, first.continues) == ("g/0", [5, 6, 7], [5, 6, 7])
    assert (second.group_id, second.token_ids, second.continues) == ("g/1", [5, 6], [5, 6])


@pytest.mark.parametrize("order", [(0,), (0, 0, 1), (0, 0)])
def test_a_rest_that_is_missing_or_there_twice_is_named(order: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequestError, match=r"one response that goes on with it \(n = 1\); see g/"):
        joined(CUT, rest(*order))


def test_a_rest_of_other_tokens_is_refused() -> None:
    other = sampled(["g/0/0", "g/1/0"], ["g/0", "g/1"], [[5, 6, 8], [5, 6]], [[8], [10]], version=2)
    with pytest.raises(InvalidRequestError, match="the rest of g/0 was asked for with other tokens"):
        joined(CUT, other)
