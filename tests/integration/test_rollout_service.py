"""The rollout service over gRPC, on vLLM's CPU build with a small random model."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from rollout_side import check_each_group_is_whole, collect, engine_stopped, until_running, vllm_service
from static_side import LIMIT, PROMPTS, prompts, static
from vanishing_client import killed_while_it_waits

from baton.clients import RolloutClient
from baton.clients.rollout import Prompt, SamplingParams
from baton.errors import InvalidRequestError, NotReadyError, ServiceUnavailableError, StalePolicyError
from baton.local.process_tree import kill_below
from baton.samples import FinishReason
from processes import ServiceProcess, free_port
from ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CONTEXT = 64
"""Of `small_replica`."""


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


async def test_each_group_has_n_samples_with_ids_log_probabilities_and_version(rollout: RolloutClient) -> None:
    await check_each_group_is_whole(rollout, version=0)


async def test_overrides_win_over_the_run_file(rollout: RolloutClient) -> None:
    sampling = SamplingParams(max_new_tokens=3, ignore_eos=True, temperature=0.0)
    prompts = [Prompt(name, token_ids=[9, 9]) for name in "ab"]
    first, second = [group.samples for group in (await collect(rollout.generate(prompts, sampling=sampling))).values()]
    assert first.response_ids.lengths.tolist() == [3]
    assert first.finish_reasons.tolist() == [FinishReason.LENGTH]
    assert first.temperatures.tolist() == [0.0]
    np.testing.assert_array_equal(first.response_ids.values, second.response_ids.values)  # greedy


async def test_options_that_contradict_each_other_are_refused_with_the_group(rollout: RolloutClient) -> None:
    with pytest.raises(InvalidRequestError, match="group a: a beam search ends at no text"):
        await collect(
            rollout.generate([Prompt("a", token_ids=[9])], sampling=SamplingParams(use_beam_search=True, stop=["w1"]))
        )


async def test_several_greedy_responses_are_equal(rollout: RolloutClient) -> None:
    sampling = SamplingParams(n=3, temperature=0.0, ignore_eos=True)
    samples = (await collect(rollout.generate([Prompt("a", token_ids=[9])], sampling=sampling)))["a"].samples
    assert samples.sample_ids == ["a/0", "a/1", "a/2"]
    assert len({tuple(row.tolist()) for row in samples.response_ids.rows()}) == 1


async def test_a_group_that_is_named_twice_is_refused(rollout: RolloutClient) -> None:
    with pytest.raises(InvalidRequestError, match="group a is in the request 2 times"):
        await collect(rollout.generate([Prompt("a", token_ids=[9]), Prompt("a", token_ids=[8])]))


async def test_the_same_seed_draws_the_same_tokens(rollout: RolloutClient) -> None:
    async def draw(seed: int) -> list[int]:
        sampling = SamplingParams(n=4, seed=seed, ignore_eos=True)
        group = (await collect(rollout.generate([Prompt("a", token_ids=[5, 6])], sampling=sampling)))["a"]
        return group.samples.response_ids.values.tolist()

    assert await draw(1) == await draw(1)
    assert await draw(1) != await draw(2)


async def test_static_batches_and_vllm_give_the_same_greedy_tokens(rollout: RolloutClient, model: Path) -> None:
    """On 64 prompts of 1 to 60 tokens; vLLM's responses to the longest end where its context does."""
    sampling = SamplingParams(temperature=0.0, max_new_tokens=LIMIT, ignore_eos=True)
    asked = [Prompt(f"p{i}", token_ids=prompt) for i, prompt in enumerate(prompts())]
    groups = await collect(rollout.generate(asked, sampling=sampling))
    cases = {"ranked-capped": ("unending", 16, True, 3)}
    answers = await asyncio.to_thread(run_ranks, static, 1, free_port(), model, 1, cases, timeout_s=240)
    of_vllm = [groups[prompt.group_id].samples.response_ids.values.tolist() for prompt in asked]
    of_batches = [tokens for tokens, *_ in answers[0]["ranked-capped"]]
    room = [min(LIMIT, CONTEXT - len(prompt)) for prompt in prompts()]
    assert [len(tokens) for tokens in of_vllm] == room and len(room) == PROMPTS
    assert of_vllm == [tokens[:limit] for tokens, limit in zip(of_batches, room, strict=True)]
    assert len({*map(tuple, of_vllm)}) > PROMPTS / 2, "the model no longer heeds its prompts"


async def test_a_prompt_that_fills_the_context_is_refused_by_name(rollout: RolloutClient) -> None:
    prompts = [Prompt("short", token_ids=[5]), Prompt("long", token_ids=[5] * CONTEXT)]
    with pytest.raises(InvalidRequestError, match=r"prompt long has 64 tokens.*context of 64"):
        await collect(rollout.generate(prompts))


async def test_a_request_of_more_bytes_than_grpc_takes_by_itself_is_read(rollout: RolloutClient) -> None:
    with pytest.raises(InvalidRequestError, match=r"prompt long has 2000000 tokens"):
        await collect(rollout.generate([Prompt("long", token_ids=[5] * 2_000_000)]))


async def test_a_prompt_without_input_is_refused(rollout: RolloutClient) -> None:
    with pytest.raises(InvalidRequestError, match="prompt empty has no input"):
        await collect(rollout.generate([Prompt("empty")]))


@pytest.mark.parametrize("demand", [{"exact_version": 3}, {"min_version": 1}])
async def test_another_version_than_the_served_one_is_refused_by_number(
    rollout: RolloutClient, demand: dict[str, int]
) -> None:
    with pytest.raises(StalePolicyError, match=r"serves (version )?0"):
        await collect(rollout.generate([Prompt("a", token_ids=[5])], **demand))


async def test_a_commit_without_an_update_is_refused(rollout: RolloutClient) -> None:
    with pytest.raises(NotReadyError, match="version 7 cannot be committed"):
        await rollout.commit_weights(7, "00")


async def test_a_cancelled_request_leaves_nothing_running(process: ServiceProcess, rollout: RolloutClient) -> None:
    """Nor does the engine end it."""
    with engine_stopped(process):
        call = asyncio.create_task(collect(rollout.generate([Prompt(f"p{i}", token_ids=[5]) for i in range(32)])))
        await until_running(rollout, 32)
        call.cancel()
        await until_running(rollout, 0)


async def test_the_work_of_a_client_that_is_killed_is_aborted(process: ServiceProcess, rollout: RolloutClient) -> None:
    with engine_stopped(process):
        await killed_while_it_waits(rollout, process.address)


async def test_a_replica_ends_with_its_engine(process: ServiceProcess, rollout: RolloutClient) -> None:
    """The last test with `small_replica`: it leaves none to others."""
    with engine_stopped(process):
        waiting = asyncio.create_task(collect(rollout.generate([Prompt(f"g{i}", token_ids=[5]) for i in range(8)])))
        await until_running(rollout, 8)
        kill_below(process.popen.pid)
    with pytest.raises(ServiceUnavailableError):
        await waiting
    assert await asyncio.to_thread(process.popen.wait, 60) != 0
    assert "the engine's process died" in process.output()


REFUSED = {
    "tokenizer": ("/nowhere/tokenizer", r"models\.policy\.tokenizer: '/nowhere/tokenizer' could not be loaded"),
    "stop_token_list": ("w7;nothing", r"models\.policy\.stop_token_list: stop text 'nothing': the tokenizer has no tokens"),
}


async def test_what_the_tokenizer_rules_out_ends_the_service_and_names_the_option(tmp_path: Path, small_model: Path) -> None:
    """Each option in a service of its own, all at once."""

    async def check(option: str, value: str, reason: str) -> None:
        (own := tmp_path / option).mkdir()
        service = vllm_service(own, small_model, **{option: value})
        try:
            with pytest.raises(AssertionError, match=reason):
                await asyncio.to_thread(service.start, timeout_s=240)
        finally:
            service.kill()

    await asyncio.gather(*(check(option, *case) for option, case in REFUSED.items()))
