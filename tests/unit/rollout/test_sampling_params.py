"""Run-file options and a request's overrides become vLLM's SamplingParams."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from baton.clients.rollout import SamplingParams
from baton.config.policy import PolicyConfig
from baton.errors import InvalidRequestError
from models import make_tokenizer

pytestmark = pytest.mark.slow  # importing vLLM takes more than five seconds


def group(
    config: dict[str, Any], prompt_tokens: int = 10, context: int = 64, group_id: str = "g", **overrides: Any
) -> Any:  # fmt: skip
    from services.rollout.sampling import group_sampling

    overridden = SamplingParams(**overrides).to_proto()
    return group_sampling(PolicyConfig(**config), overridden, group_id, prompt_tokens, context, stop_texts())


def sampled(config: dict[str, Any] | None = None, prompt_tokens: int = 10, context: int = 64, **overrides: Any) -> Any:
    return group(config or {}, prompt_tokens, context, **overrides).params


@cache
def stop_texts() -> Any:
    from transformers import AutoTokenizer

    from services.rollout.stop_texts import StopTexts

    with tempfile.TemporaryDirectory() as directory:
        return StopTexts(AutoTokenizer.from_pretrained(make_tokenizer(Path(directory), ["x", "y", "z"])))


RUN_FILE = {
    "n": 3, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "presence_penalty": 0.5, "frequency_penalty": 0.25,
    "repetition_penalty": 1.25, "ignore_eos": True, "max_new_tokens": 7, "stop_token_list": "x;y",
}  # fmt: skip


def test_without_overrides_the_run_file_is_followed() -> None:
    params = sampled(RUN_FILE)
    assert (params.n, params.temperature, params.top_p, params.top_k, params.max_tokens) == (3, 0.7, 0.9, 40, 7)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0.5, 0.25, 1.25)
    assert (params.ignore_eos, params.stop, params.seed) == (True, ["x", "y"], None)


OVERRIDES = {
    "n": 5, "temperature": 0.2, "top_p": 0.5, "top_k": 3, "ignore_eos": False, "presence_penalty": 1.0,
    "frequency_penalty": 1.5, "repetition_penalty": 0.5, "stop": ["z"], "prompt_logprobs": 2,
}  # fmt: skip


@pytest.mark.parametrize("name", OVERRIDES)
def test_each_override_replaces_its_option_and_no_other(name: str) -> None:
    changed, plain = sampled(RUN_FILE, **{name: OVERRIDES[name]}), sampled(RUN_FILE)
    assert getattr(changed, name) == pytest.approx(OVERRIDES[name])
    for other in {*OVERRIDES} - {name}:
        assert getattr(changed, other) == getattr(plain, other)


@pytest.mark.parametrize(("name", "zero"), [("temperature", 0.0), ("top_k", 0), ("ignore_eos", False)])
def test_an_override_of_zero_is_not_taken_for_an_unset_one(name: str, zero: Any) -> None:
    assert getattr(sampled(RUN_FILE | {"n": 1}, **{name: zero}), name) == zero


def test_a_seed_of_a_request_becomes_one_of_each_group_and_the_same_again() -> None:
    found = {(seed, name): group({}, group_id=name, seed=seed).params.seed for seed in (0, 1) for name in ("g", "h")}
    assert len({*found.values()}) == 4 and all(0 <= seed < 2**62 for seed in found.values())
    assert group({}, group_id="h", seed=1).params.seed == found[1, "h"]


@pytest.mark.parametrize(
    ("run_file", "override", "expected"),
    [(None, None, 54), (7, None, 7), (7, 20, 20), (None, 20, 20), (7, 100, 54), (100, None, 54)],
)
def test_a_response_is_limited_by_the_override_else_the_run_file_and_always_by_the_room_that_is_left(
    run_file: int | None, override: int | None, expected: int
) -> None:
    assert sampled({"max_new_tokens": run_file}, max_new_tokens=override).max_tokens == expected


@pytest.mark.parametrize(
    "cut", [{"top_p": 0.9}, {"top_k": 5}, {"presence_penalty": 0.5}, {"frequency_penalty": 0.5}, {"repetition_penalty": 1.2}]
)
def test_both_log_probabilities_of_the_sampled_token_are_asked_for_and_the_uncut_one_if_neither_says_it(
    cut: dict[str, float],
) -> None:
    assert [sampled(temperature=t, **cut).logprobs for t in (0.0, 0.7, 1.0)] == [1, 2, 1]
    assert [sampled(temperature=t, top_k=0).logprobs for t in (0.0, 0.7, 1.0)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"top_p": 0.0}, "top_p must be in"),
        ({"top_p": 1.5}, "top_p must be in"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"stop": [""]}, "stop cannot contain an empty string"),
        ({"stop": ["x", "unknown"]}, "stop text 'unknown': the tokenizer has no tokens for it"),
        ({"use_beam_search": True, "stop": ["x"]}, "a beam search ends at no text"),
    ],
)
def test_options_out_of_range_are_refused_with_the_group(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"group g: .*{message}"):
        sampled(**overrides)


def test_one_stop_text_may_come_without_a_list_and_a_token_id_is_none() -> None:
    assert sampled(stop="x").stop == ["x"]
    with pytest.raises(InvalidRequestError, match="stop: got 5; must be texts"):
        SamplingParams(stop=["x", 5]).to_proto()


def test_a_prompt_that_leaves_room_for_one_token_gets_it() -> None:
    assert sampled(prompt_tokens=63, context=64).max_tokens == 1


@pytest.mark.parametrize("prompt_tokens", [64, 65, 1000])
def test_a_prompt_that_leaves_no_room_is_refused_with_its_group_and_both_lengths(prompt_tokens: int) -> None:
    with pytest.raises(InvalidRequestError, match=rf"prompt g has {prompt_tokens} tokens, .* context of 64; shorten"):
        sampled(prompt_tokens=prompt_tokens, context=64)


@pytest.mark.parametrize("override", [{"temperature": -1.0}, {"top_p": 1.5}, {"top_k": -7}, {"n": 0}, {"max_new_tokens": 0}])
def test_an_override_that_makes_no_sense_is_refused_with_its_group(override: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="group g"):
        sampled(**override)


def test_several_greedy_responses_are_one_that_is_given_so_often() -> None:
    greedy = group({"n": 3, "temperature": 0.0})
    assert (greedy.n, greedy.params.n, greedy.copies) == (3, 1, 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_p", 0.9), ("top_k", 5), ("presence_penalty", 0.5), ("frequency_penalty", -0.5), ("repetition_penalty", 1.2),
        ("prompt_logprobs", 0),
    ],
)  # fmt: skip
def test_what_a_beam_search_would_leave_out_of_account_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(InvalidRequestError, match=f"group g: a beam search (has|returns) no {name}"):
        sampled(use_beam_search=True, n=2, **{name: value})


def test_the_run_file_may_ask_for_a_beam_search_which_a_request_may_leave() -> None:
    run_file = {"use_beam_search": True, "n": 4, "temperature": 0.7}
    assert (group(run_file).is_beam, group(run_file).n, group(run_file).temperature) == (True, 4, 0.0)
    assert PolicyConfig(**run_file).for_evaluation().use_beam_search
    assert not group(run_file, use_beam_search=False).is_beam


def test_a_beam_search_may_have_several_responses_at_temperature_zero() -> None:
    assert sampled({"temperature": 0.0}, use_beam_search=True, n=4).n == 4


def test_without_the_token_limit_a_response_may_fill_the_context() -> None:
    assert sampled({"max_new_tokens": 7, "new_token_limit": False}).max_tokens == 54


def test_an_evaluation_alone_takes_the_options_that_are_named_for_it() -> None:
    run_file = {"top_p": 0.9, "top_k": 40, "eval_top_p": 0.5, "eval_top_k": 3}
    assert (sampled(run_file).top_p, sampled(run_file).top_k) == (0.9, 40)
    evaluated = PolicyConfig(**run_file).for_evaluation()
    assert (evaluated.top_p, evaluated.top_k) == (0.5, 3)


@pytest.mark.parametrize(
    ("agent", "stop", "ignore_eos"),
    [({}, ["</a>", "X"], True), ({"stop": ["Y"]}, ["Y"], True), ({"stop_token_ids": [4]}, [], True)],
    ids=["none", "a text", "a token"],
)
def test_what_an_agent_has_sampled_ends_as_the_run_file_says_where_the_agent_says_nothing(agent, stop, ignore_eos) -> None:
    from vllm import SamplingParams

    from services.rollout.recording_engine import ended_as

    asked = SamplingParams(temperature=0.5, top_k=7, **agent)
    params = ended_as(PolicyConfig(stop_token_list="</a>;X", ignore_eos=True), asked)
    assert (params.stop, params.ignore_eos, params.temperature, params.top_k) == (stop, ignore_eos, 0.5, 7)
    assert params.output_text_buffer_length == max(map(len, stop), default=1) - 1, "what vLLM holds back of a stream"
    assert not ended_as(PolicyConfig(), asked).ignore_eos
