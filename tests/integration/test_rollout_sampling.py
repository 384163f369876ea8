"""Every sampling option in real vLLM: its effect, and log-probabilities that are exactly those of what was sampled from."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exact_sampling import Logits, answers, check_described, distribution, log_softmax, reference
from rollout_side import engine_stopped, until_running

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.clients import RolloutClient
from baton.clients.rollout import Prompt, SamplingParams
from baton.errors import BackpressureError, InvalidRequestError
from baton.samples import FinishReason
from models import VOCABULARY
from processes import ServiceProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CONTEXT, LIMIT = 64, 8
"""Of `small_replica`."""
DRAWS = 20_000
PROMPT = [5, 6, 7, 6]


@pytest.fixture(scope="module")
def model(small_model: Path) -> Path:
    return small_model


@pytest.fixture(scope="module")
def process(small_replica: ServiceProcess) -> ServiceProcess:
    return small_replica


@pytest.fixture
async def rollout(process: ServiceProcess) -> AsyncIterator[RolloutClient]:
    async with RolloutClient(process.address) as client:
        yield client


@pytest.fixture(scope="module")
def logits(model: Path) -> Logits:
    return reference(model)


@pytest.fixture(scope="module")
def tolerance() -> float:
    """Of log-probabilities in float32: an accelerator adds in another order than the reference on the CPU."""
    import torch

    return 2e-3 if torch.cuda.is_available() else 1e-4


def chance(chi_square: float, freedom: int) -> float:
    """Of a value at least so large, if the draws are of the expected distribution."""
    import torch

    return torch.special.gammaincc(torch.tensor(freedom / 2.0), torch.tensor(chi_square / 2.0)).item()


OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0.6},
    {"top_p": 0.7},
    {"top_k": 9},
    {"presence_penalty": 1.5},
    {"frequency_penalty": -1.5},
    {"repetition_penalty": 1.8},
    {
        "temperature": 1.7,
        "top_p": 0.9,
        "top_k": 40,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "repetition_penalty": 0.7,
    },
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options))
async def test_log_probabilities_are_those_of_what_was_sampled_from_and_beside_them_the_raw_models_and_the_whole(
    rollout, logits, tolerance, options
):
    [group] = await answers(rollout, PROMPT, n=8, ignore_eos=True, seed=3, **options)
    check_described(group.samples, logits, tolerance, **options)
    told = group.samples.uncut_logprobs is not None
    assert told == (len(options) > 1), "alone, an option leaves the whole distribution in one of the other columns"


@pytest.mark.parametrize("options", [{}, *OPTIONS[:3], {"temperature": 1.3, "top_p": 0.8, "top_k": 30}], ids=str)
async def test_tokens_are_drawn_from_the_exact_distribution(rollout, logits, options):
    """Chi-square over the likeliest tokens, the others as one."""
    groups = await answers(rollout, *([PROMPT] * 20), n=DRAWS // 20, max_new_tokens=1, ignore_eos=True, seed=None, **options)
    drawn = np.concatenate([group.samples.response_ids.values for group in groups])
    counts = np.bincount(drawn, minlength=VOCABULARY)
    expected = DRAWS * np.exp(distribution(logits(PROMPT)[0, -1], PROMPT, [], **options))
    assert counts[expected == 0].sum() == 0
    common = expected > 20
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    if wanted[-1] < 1e-6:
        observed, wanted = observed[:-1], wanted[:-1]
    assert chance(((observed - wanted) ** 2 / wanted).sum(), len(observed) - 1) > 1e-4


async def test_nothing_is_drawn_at_temperature_zero(rollout, logits, tolerance):
    [group] = await answers(rollout, PROMPT, temperature=0.0, ignore_eos=True)
    tokens = group.samples.response_ids.values.tolist()
    [found] = logits([*PROMPT, *tokens])
    assert tokens == found[len(PROMPT) - 1 : -1].argmax(-1).tolist()
    assert group.samples.rollout_logprobs.values.tolist() == [0.0] * LIMIT
    likeliest = log_softmax(found[len(PROMPT) - 1 : -1]).max(-1)
    np.testing.assert_allclose(group.samples.model_logprobs.values, likeliest, atol=tolerance)


async def test_an_evaluation_takes_the_options_of_its_own(rollout):
    evaluated = (await answers(rollout, PROMPT, PROMPT, evaluation=True, ignore_eos=True))[0]
    greedy = (await answers(rollout, PROMPT, temperature=0.0, ignore_eos=True))[0]
    assert evaluated.samples.temperatures.tolist() == [0.0]
    assert evaluated.texts == greedy.texts
    drawn = (await answers(rollout, PROMPT, n=4, ignore_eos=True))[0]
    assert drawn.samples.temperatures.tolist() == [1.0] * 4
    assert len(set(drawn.texts)) == 4


async def test_an_evaluation_alone_has_the_top_k_of_evaluations(rollout, logits):
    """The run file's is 2, of which a temperature above 0 draws either."""
    likeliest = set(np.argsort(-logits(PROMPT)[0, -1])[:2].tolist())
    options = {"n": 200, "temperature": 2.0, "max_new_tokens": 1, "ignore_eos": True}
    evaluated = (await answers(rollout, PROMPT, evaluation=True, **options))[0]
    assert set(evaluated.samples.response_ids.values.tolist()) == likeliest
    drawn = (await answers(rollout, PROMPT, **options))[0]
    assert len(set(drawn.samples.response_ids.values.tolist())) > 2


async def test_with_new_token_limit_a_response_has_at_most_max_new_tokens(rollout):
    """Without it see test_engine_options."""
    short, long = await answers(rollout, PROMPT, [5] * (CONTEXT - LIMIT + 3), ignore_eos=True)
    assert short.samples.response_ids.lengths.tolist() == [LIMIT]
    assert long.samples.response_ids.lengths.tolist() == [LIMIT - 3], "no more than the context has room for"


async def test_a_stop_text_that_no_response_can_have_is_refused(rollout):
    with pytest.raises(InvalidRequestError, match="group 0: stop text 'nothing': the tokenizer has no tokens for it"):
        await answers(rollout, PROMPT, stop=["w7", "nothing"])


async def test_a_stop_text_ends_a_response(rollout):
    [free] = await answers(rollout, PROMPT, temperature=0.0, ignore_eos=True)
    words = free.texts[0].split()
    word, first = words[2], words.index(words[2])
    [stopped] = await answers(rollout, PROMPT, temperature=0.0, ignore_eos=True, stop=[word])
    assert stopped.samples.finish_reasons.tolist() == [FinishReason.STOP]
    assert stopped.samples.response_ids.values.tolist() == free.samples.response_ids.values[: first + 1].tolist()
    assert word not in stopped.texts[0]


async def test_a_stop_text_that_is_a_special_token_ends_a_response(rollout, model):
    """It never comes in a text; here the end token, which is ignored otherwise."""
    [group] = await answers(rollout, PROMPT, n=256, max_new_tokens=48, temperature=2.0, ignore_eos=True, stop=["</s>"])
    rows = group.samples.response_ids.rows()
    stopped = [row for row, why in zip(rows, group.samples.finish_reasons, strict=True) if why == FinishReason.STOP]
    assert stopped and all(row[-1] == 2 for row in stopped)
    assert all(2 not in row[:-1] for row in rows)
    assert all("</s>" not in text for text in group.texts)


async def test_the_end_token_ends_a_response_unless_it_is_ignored(rollout):
    groups = await answers(rollout, *([PROMPT] * 8), n=64, max_new_tokens=48, temperature=2.0)
    ended = [
        row[-1] == 2
        for group in groups
        for row, why in zip(group.samples.response_ids.rows(), group.samples.finish_reasons, strict=True)
        if why == FinishReason.STOP
    ]
    assert ended and all(ended)
    [ignored] = await answers(rollout, PROMPT, n=64, max_new_tokens=48, temperature=2.0, ignore_eos=True)
    assert set(ignored.samples.response_ids.lengths) == {48}


async def test_the_beam_search_finds_the_best_of_all_responses(rollout, logits, tolerance):
    first = log_softmax(logits(PROMPT)[0, -1])
    second = log_softmax(logits(*([*PROMPT, token] for token in range(VOCABULARY)))[:, -1])
    totals = first[:, None] + second
    best = np.unravel_index(np.argsort(-totals, axis=None)[:3], totals.shape)
    [group] = await answers(rollout, PROMPT, use_beam_search=True, n=64, max_new_tokens=2, ignore_eos=True)
    found = [row.tolist() for row in group.samples.response_ids.rows()[:3]]
    assert found == np.stack(best, -1).tolist()
    assert group.samples.model_logprobs.rows()[0].sum() == pytest.approx(totals.max(), abs=tolerance)
    assert group.samples.temperatures.tolist() == [0.0] * 64


@pytest.mark.parametrize("times", [1, 14], ids=["short prompt", "long prompt"])
async def test_the_beam_search_ranks_responses_of_unlike_length_by_their_whole_probability(rollout, logits, times):
    prompt, end = PROMPT * times, 2
    totals = {(end,): (first := log_softmax(logits(prompt)[0, -1]))[end]}
    for token in set(range(VOCABULARY)) - {end}:
        second = log_softmax(logits([*prompt, token])[0, -1])
        totals |= {(token, last): first[token] + second[last] for last in range(VOCABULARY)}
    best = sorted(totals, key=totals.get, reverse=True)[:8]
    wide = VOCABULARY // 2 - 1  # a search looks at twice as many tokens, so at all but two
    [group] = await answers(rollout, prompt, use_beam_search=True, n=wide, max_new_tokens=2)
    assert [tuple(row.tolist()) for row in group.samples.response_ids.rows()[:8]] == best


async def test_prompt_log_probabilities_are_the_raw_models(rollout, logits, tolerance):
    [group] = await answers(rollout, PROMPT, prompt_logprobs=2, temperature=0.3)
    found = group.prompt_logprobs["0"]
    expected = log_softmax(logits(PROMPT)[0, :-1])
    assert found.token_ids[:, 0].tolist() == PROMPT[1:]
    np.testing.assert_array_equal(found.token_ids[:, 1:], np.argsort(-expected)[:, :2])
    np.testing.assert_allclose(found.logprobs, np.take_along_axis(expected, found.token_ids, -1), atol=tolerance)
    assert (await answers(rollout, PROMPT))[0].prompt_logprobs == {}


async def test_a_token_id_that_the_model_does_not_have_is_refused_by_name(rollout):
    for odd in (-1, VOCABULARY):
        with pytest.raises(InvalidRequestError, match=f"prompt 0 has token id {odd}, but the model's go from 0 to 511"):
            await answers(rollout, [5, odd])


async def test_ten_thousand_requests_at_once_are_all_answered_once(rollout):
    async def one(number: int) -> str:
        [prompt] = [Prompt(str(number), token_ids=[3 + number % 500])]
        [group] = [group async for group in rollout.generate([prompt], sampling=SamplingParams(max_new_tokens=1))]
        return group.samples.sample_ids[0]

    found = await asyncio.gather(*map(one, range(10_000)))
    assert found == [f"{number}/0" for number in range(10_000)]


async def test_a_replica_with_a_full_queue_says_so(process, rollout):
    """Asked without RolloutClient.generate, which asks again until its deadline."""
    request = pb.GenerateRequest(prompts=[Prompt("a", token_ids=[5]).to_proto()], sampling=SamplingParams(n=600).to_proto())
    with engine_stopped(process):
        under_way = asyncio.create_task(answers(rollout, PROMPT, n=1500))
        await until_running(rollout, 1500)
        with pytest.raises(BackpressureError, match=r"has 1500 responses to finish, and 600 more exceed"):
            async for _ in rollout._stream("Generate", request, 60):
                pass
    under_way.cancel()
    await until_running(rollout, 0)
