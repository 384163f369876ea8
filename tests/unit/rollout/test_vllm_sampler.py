"""Three log-probabilities of each token out of vLLM's own sampler, whatever a batch does to its logits."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow  # importing vLLM takes more than five seconds

VOCABULARY, ROWS = 40, 3
torch.manual_seed(0)
LOGITS = torch.randn(ROWS, VOCABULARY) * 2
RAW = LOGITS.log_softmax(-1)


@pytest.fixture(autouse=True)
def uncompiled() -> Iterator[None]:
    """vLLM compiles a helper of its sampler, which takes longer than all else here."""
    with torch.compiler.set_stance("force_eager"):
        yield


def processors(**asked: Any) -> Any:
    """vLLM's own, that know of a request in row 1 which asks for this."""
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.logits_processor.builtin import (
        LogitBiasLogitsProcessor,
        MinPLogitsProcessor,
        MinTokensLogitsProcessor,
    )  # fmt: skip
    from vllm.v1.sample.logits_processor.interface import BatchUpdate

    kinds = MinPLogitsProcessor, LogitBiasLogitsProcessor, MinTokensLogitsProcessor
    limits = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=ROWS))
    made = [kind(limits, torch.device("cpu"), False) for kind in kinds]
    params = [SamplingParams(**(asked if row == 1 else {})) for row in range(ROWS)]
    params[1].update_from_generation_config({}, 2)
    update = BatchUpdate(ROWS, [], [(row, one, [], []) for row, one in enumerate(params)], [])
    for processor in made:
        processor.update_state(update)
    return LogitsProcessors(made)


def sampled(asked: int, temperatures: list[float] | None = None, processing: Any = None, **changes: Any) -> Any:
    """(tokens [rows], log-probabilities [rows, asked + 1])."""
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.sample.sampler import Sampler

    from services.rollout import vllm_sampler

    vllm_sampler.install()
    temperatures = temperatures or [1.0] * ROWS
    options: dict[str, Any] = {
        "temperature": torch.tensor(temperatures), "all_greedy": not any(temperatures), "all_random": all(temperatures),
        "top_p": None, "top_k": None, "generators": {}, "max_num_logprobs": asked, "no_penalties": True,
        "prompt_token_ids": None, "frequency_penalties": torch.zeros(ROWS), "presence_penalties": torch.zeros(ROWS),
        "repetition_penalties": torch.ones(ROWS), "output_token_ids": [[] for _ in range(ROWS)],
        "allowed_token_ids_mask": None, "bad_words_token_ids": {}, "logitsprocs": processing or processors(),
    }  # fmt: skip
    output = Sampler("processed_logprobs").forward(LOGITS.clone(), SamplingMetadata(**options | changes))
    return output.sampled_token_ids[:, 0].long(), output.logprobs_tensors.logprobs


def banned() -> torch.Tensor:
    mask = torch.zeros(ROWS, VOCABULARY, dtype=torch.bool)
    mask[1, 5:] = True
    return mask


CASES: dict[str, Any] = {
    "nothing": lambda: {},
    "temperatures": lambda: {"temperatures": [0.5, 1.0, 2.0]},
    "a greedy one": lambda: {"temperatures": [0.0, 1.0, 1.0]},
    "a greedy one and a warm one": lambda: {"temperatures": [0.0, 1.0, 0.5]},
    "greedy ones": lambda: {"temperatures": [0.0, 0.0, 0.0], "temperature": None},
    "top-k": lambda: {"top_k": torch.tensor([VOCABULARY, 3, VOCABULARY])},
    "top-p": lambda: {"top_p": torch.tensor([1.0, 0.4, 1.0]), "temperatures": [1.0, 0.7, 1.0]},
    "penalties": lambda: {
        "no_penalties": False, "frequency_penalties": torch.tensor([0.0, 1.5, 0.0]),
        "output_token_ids": [[], list(range(20)), []], "prompt_token_ids": torch.full((ROWS, 1), VOCABULARY),
    },
    "allowed tokens": lambda: {"allowed_token_ids_mask": banned()},
    "bad words": lambda: {"bad_words_token_ids": {1: [[int(RAW[1].argmax())]]}},
    "min-p": lambda: {"processing": processors(min_p=0.3)},
    "a bias": lambda: {"processing": processors(logit_bias={7: 5.0})},
    "a minimum of tokens": lambda: {"processing": processors(min_tokens=4, stop_token_ids=[int(RAW[1].argmax())])},
}  # fmt: skip
WHOLE = ("nothing", "a greedy one", "greedy ones")


@pytest.mark.parametrize("case", CASES)
def test_the_raw_and_the_uncut_log_probabilities_are_those_whatever_is_done_to_the_logits(case: str) -> None:
    options = CASES[case]()
    tokens, found = sampled(4, **options)
    temperatures = torch.tensor([one or 1.0 for one in options.get("temperatures", [1.0] * ROWS)])
    uncut = (LOGITS / temperatures[:, None]).log_softmax(-1)
    torch.testing.assert_close(found[:, 1:2], RAW.gather(-1, tokens[:, None]))
    torch.testing.assert_close(found[:, 2:3], uncut.gather(-1, tokens[:, None]))
    changed = not torch.allclose(found[:, 0], found[:, 1])
    assert changed == (case not in WHOLE), "or the case does nothing to the logits"


def test_who_asks_for_one_gets_the_raw_models_and_who_asks_for_none_what_vllm_gives() -> None:
    tokens, found = sampled(1, temperatures=[0.5] * ROWS)
    torch.testing.assert_close(found[:, 1:], RAW.gather(-1, tokens[:, None]))
    assert sampled(0)[1].shape == (ROWS, 1)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_behind_the_three_come_the_likeliest_of_what_was_drawn_from(temperature: float) -> None:
    _, found = sampled(5, temperatures=[temperature] * ROWS)
    likeliest = (LOGITS / temperature).log_softmax(-1).topk(3).values
    torch.testing.assert_close(found[:, 3:], likeliest)
