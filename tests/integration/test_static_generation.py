"""Static batches on Megatron-Core say what transformers says, however they are ordered, cut, capped and split; and draw the
same, whatever order they are asked for in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from static_side import END_TOKENS, LIMIT, PROMPTS, Asked, Case, engine_draws, prompts, rows, static, transformers_greedy

from baton.samples import FinishReason
from models import make_model
from processes import free_port
from ranks import Rank, run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CASES: dict[str, Case] = {
    "greedy": ("greedy", 16, False, 0),
    "greedy-ranked": ("greedy", 16, True, 0),
    "greedy-capped": ("greedy", 16, True, 3),
    "greedy-one-batch": ("greedy", 64, False, 0),
    "sampled": ("sampled", 16, False, 0),
    "sampled-ranked": ("sampled", 16, True, 0),
    "sampled-capped": ("sampled", 16, True, 3),
    "sampled-alone": ("sampled", 1, False, 0),
}


ASKED: dict[str, Asked] = {
    "plain": (False, 0, False, 3),
    "ranked-capped": (True, 3, False, 3),
    "backwards": (False, 0, True, 3),
    "other-seed": (False, 0, False, 4),
}


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model", request.param, tied=request.param == "qwen3")


@pytest.fixture(scope="module")
def answers(model: Path) -> dict[str, Any]:
    """Every case on one rank."""
    return run_ranks(static, 1, free_port(), model, 1, CASES, timeout_s=800)[0]


def same(left: list[tuple], right: list[tuple]) -> None:
    """Asserts equal tokens and reasons, and log-probabilities that differ by rounding only."""
    assert len(left) == len(right) == PROMPTS
    for (tokens, *logprobs, finish), (other_tokens, *other_logprobs, other_finish) in zip(left, right, strict=True):
        assert (tokens, finish) == (other_tokens, other_finish)
        for mine, theirs in zip(logprobs, other_logprobs, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-4, rtol=0)


def test_greedy_responses_are_those_of_transformers(model: Path, answers: dict[str, Any]) -> None:
    expected = Rank(transformers_greedy, model).result(timeout_s=800)
    assert [tokens for tokens, *_ in answers["greedy"]] == expected
    finished = [finish for *_, finish in answers["greedy"]]
    assert {*finished} == {FinishReason.STOP, FinishReason.LENGTH}, "the prompts no longer show both"
    for tokens, *_, finish in answers["greedy"]:
        assert finish == (FinishReason.STOP if tokens[-1] in END_TOKENS else FinishReason.LENGTH)
        assert len(tokens) == LIMIT or finish == FinishReason.STOP


@pytest.mark.parametrize("case", [name for name in CASES if "-" in name])
def test_neither_order_nor_cap_nor_batch_changes_a_response(case: str, answers: dict[str, Any]) -> None:
    same(answers[case], answers[case.split("-")[0]])


def test_every_row_keeps_its_own_limit_and_its_own_end(answers: dict[str, Any]) -> None:
    for row, (tokens, logprobs, model_logprobs, uncut, finish) in zip(rows("sampled"), answers["sampled"], strict=True):
        assert len(tokens) == len(logprobs) == len(model_logprobs) == len(uncut) <= row.limit
        assert (finish == FinishReason.LENGTH) == (
            len(tokens) == row.limit and (row.ignore_eos or tokens[-1] not in END_TOKENS)
        )
        if row.sampling.temperature in (0.0, 1.0) and row.sampling.top_k < 0:
            assert logprobs == pytest.approx(model_logprobs, abs=1e-5)


def test_the_prompts_are_of_mixed_length() -> None:
    assert len({len(prompt) for prompt in prompts()}) > 15


@pytest.mark.parametrize("tensor", [2, 1], ids=["tp2", "pp2"])
def test_tensor_and_pipeline_parallel_groups_say_what_one_rank_says(
    tensor: int, model: Path, answers: dict[str, Any]
) -> None:
    cases = {name: CASES[name] for name in ("greedy-capped", "sampled")}
    by_rank = run_ranks(static, 2, free_port(), model, tensor, cases, timeout_s=800)
    sampler = 0 if tensor == 2 else 1
    for name in cases:
        same(by_rank[sampler][name], answers[name])
        assert by_rank[1 - sampler][name] == []


def test_draws_without_a_seed_depend_on_engine_seed_group_and_repetition_and_not_on_any_order(model: Path) -> None:
    draws = run_ranks(engine_draws, 1, free_port(), model, ASKED, timeout_s=800)[0]
    for case in ("ranked-capped", "backwards"):
        assert draws[case] == draws["plain"], case
    first, again = draws["plain"]
    assert len(first) == PROMPTS
    assert all(first[group] != again[group] for group in first), "a group that is asked for again draws anew"
    assert all(one != other for one, other in first.values()), "two responses of a group are the same"
    assert all(first[group] != other for group, other in draws["other-seed"][0].items())
