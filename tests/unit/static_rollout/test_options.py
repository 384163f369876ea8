"""Run-file options and a request's overrides become what a static batch samples with."""

from typing import Any

import pytest

from baton.clients.rollout import SamplingParams
from baton.config.policy import PolicyConfig
from baton.errors import InvalidRequestError
from services.static_rollout.options import RowOptions, row_options

RUN_FILE = {
    "n": 3, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "ignore_eos": True, "max_new_tokens": 7, "stop_token_list": "x;y",
}  # fmt: skip


def options(config: dict[str, Any] | None = None, prompt_tokens: int = 10, **overrides: Any) -> RowOptions:
    return row_options(PolicyConfig(**config or {}), SamplingParams(**overrides).to_proto(), "g", prompt_tokens, 64)


def test_without_overrides_the_run_file_is_followed() -> None:
    found = options(RUN_FILE)
    assert (found.n, found.temperature, found.sampling.top_p, found.sampling.top_k) == (3, 0.7, 0.9, 40)
    assert (found.limit, found.seed, found.ignore_eos, found.stop) == (7, None, True, ("x", "y"))


def test_an_override_of_zero_is_not_taken_for_an_unset_one() -> None:
    found = options(RUN_FILE, n=1, temperature=0.0, top_k=0, seed=0, ignore_eos=False)
    assert (found.temperature, found.sampling.top_k, found.seed, found.ignore_eos) == (0.0, 0, 0, False)


@pytest.mark.parametrize(
    ("run_file", "override", "expected"),
    [(None, None, 54), (7, None, 7), (7, 20, 20), (None, 20, 20), (7, 100, 54), (100, None, 54)],
)
def test_a_response_is_limited_by_the_override_else_the_run_file_and_always_by_the_room_that_is_left(
    run_file: int | None, override: int | None, expected: int
) -> None:
    assert options({"max_new_tokens": run_file}, max_new_tokens=override).limit == expected


@pytest.mark.parametrize(
    "override",
    [{"temperature": -1.0}, {"temperature": 0.0, "n": 2}, {"top_p": 1.5}, {"top_p": 0.0}, {"top_k": -7}, {"n": 0},
     {"max_new_tokens": 0}, {"temperature": float("nan")}],
)  # fmt: skip
def test_an_override_that_makes_no_sense_is_refused_with_its_group(override: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="group g"):
        options(**override)


@pytest.mark.parametrize(
    "override", [{"presence_penalty": 0.5}, {"repetition_penalty": 1.1}, {"use_beam_search": True}, {"prompt_logprobs": 1}]
)
def test_an_override_that_static_batches_do_not_carry_out_is_refused_by_name(override: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=rf"group g: {next(iter(override))} is not offered by static batches"):
        options(**override)


@pytest.mark.parametrize("prompt_tokens", [0, 64, 1000])
def test_a_prompt_without_tokens_or_without_room_is_refused_with_its_group(prompt_tokens: int) -> None:
    with pytest.raises(InvalidRequestError, match="prompt g"):
        options(prompt_tokens=prompt_tokens)
