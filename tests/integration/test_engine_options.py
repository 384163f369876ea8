"""What the run file alone says, in real vLLM: scheduler, cache and tokenizer, and sampling that no request overrides.

docs/rollouts.md tells which test observes which option.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from exact_sampling import Logits, answers, check_described, distribution, log_softmax, reference
from rollout_side import collect, engine_stopped, until_running, vllm_service

from baton.clients import RolloutClient
from baton.clients.rollout import Prompt, SamplingParams
from models import VOCABULARY, make_model, make_tokenizer
from processes import ServiceProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CONTEXT, PROMPT = 1024, [5, 6, 7, 6]
SAMPLING = {"temperature": 0.7, "top_p": 0.8, "top_k": 40}
NUCLEUS = 0.05
GIB = 2**30
CACHE_GIB = 4


def machine_memory() -> int:
    """In bytes, as far as this container may use it."""
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.exists() else "max"
    return min(psutil.virtual_memory().total, int(allowed) if allowed.isdigit() else 1 << 60)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("optioned") / "model", layers=2, positions=CONTEXT)


@pytest.fixture(scope="module")
def process(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    directory = tmp_path_factory.mktemp("rollout")
    backwards = [f"w{number}" for number in reversed(range(VOCABULARY - 3))]
    service = vllm_service(
        directory, model, seq_length=CONTEXT, n=3, ignore_eos=True, **SAMPLING, eval_top_p=NUCLEUS, prompt_logprobs=1,
        max_new_tokens=8, new_token_limit=False, tokenizer=str(make_tokenizer(directory / "tokenizer", backwards)),
        block_size=32, max_num_batched_tokens=8, max_num_seqs=2,
        cpu_kv_cache_gib=None, gpu_memory_utilization=CACHE_GIB * GIB / machine_memory(),
    )  # fmt: skip
    try:
        yield service.start(timeout_s=240)
    finally:
        service.kill()


@pytest.fixture
async def rollout(process: ServiceProcess) -> AsyncIterator[RolloutClient]:
    async with RolloutClient(process.address) as client:
        yield client


@pytest.fixture(scope="module")
def logits(model: Path) -> Logits:
    return reference(model)


async def test_the_cache_has_blocks_of_block_size_and_what_gpu_memory_utilization_leaves(rollout: RolloutClient) -> None:
    """The default of cpu_kv_cache_gib would be 1 GiB, and 128 tokens a block."""
    status = await rollout.get_status()
    assert status.cache_block_tokens == 32
    per_token = 2 * 2 * 2 * 32 * 4  # key and value of 2 layers, 2 heads and 32 floats
    assert 1.1 < status.cache_blocks * 32 * per_token / GIB < CACHE_GIB


async def test_a_step_has_at_most_max_num_batched_tokens(process: ServiceProcess, rollout: RolloutClient) -> None:
    """A prompt of 900 tokens takes at least 112 steps, and a response of 100 tokens is done before; it would be one step."""
    assert await order_of_ends(process, rollout, ([5], 100), ([6] * 900, 1)) == [0, 1]


async def test_a_step_has_at_most_max_num_seqs(process: ServiceProcess, rollout: RolloutClient) -> None:
    """The third sequence waits for one of the others, however short it is."""
    assert await order_of_ends(process, rollout, ([5], 200), ([6], 400), ([7], 1)) == [0, 2, 1]


async def test_a_seeded_response_does_not_depend_on_how_its_prompt_was_cut(
    process: ServiceProcess, rollout: RolloutClient
) -> None:
    """Alone the prompt takes four steps; beside a response under way, which has a token of each step, five."""
    async def drawn() -> list[int]:
        prompt = Prompt("cut", token_ids=list(range(5, 37)))
        sampling = SamplingParams(n=1, temperature=1.0, top_p=1.0, top_k=-1, max_new_tokens=8, seed=11)
        (generation,) = [one async for one in rollout.generate([prompt], sampling=sampling, timeout_s=60)]
        return generation.samples.response_ids.values.tolist()

    alone = await drawn()
    assert len(set(alone)) > 1
    assert await drawn() == alone
    with engine_stopped(process):
        beside = asyncio.create_task(answers(rollout, [5], n=1, max_new_tokens=400))
        await until_running(rollout, 1)
        beside_it = asyncio.create_task(drawn())
        await until_running(rollout, 2)
    assert await beside_it == alone
    await beside


async def order_of_ends(process: ServiceProcess, rollout: RolloutClient, *requests: tuple[list[int], int]) -> list[int]:
    """Which of these requests, of a prompt and a length, all there before the first step, ends first, second, ..."""
    ended: list[int] = []

    async def one(number: int, prompt: list[int], length: int) -> None:
        await answers(rollout, prompt, n=1, max_new_tokens=length)
        ended.append(number)

    tasks = []
    with engine_stopped(process):
        for number, (prompt, length) in enumerate(requests):
            tasks.append(asyncio.create_task(one(number, prompt, length)))
            await until_running(rollout, number + 1)
    await asyncio.gather(*tasks)
    return ended


async def test_without_new_token_limit_a_response_fills_the_context(rollout: RolloutClient) -> None:
    """max_new_tokens is 8; with the limit see test_rollout_sampling."""
    [group] = await answers(rollout, [5] * (CONTEXT - 24), n=1)
    assert group.samples.response_ids.lengths.tolist() == [24]


async def test_n_responses_of_one_prompt_are_drawn_as_the_run_file_says(rollout: RolloutClient, logits: Logits) -> None:
    [group] = await answers(rollout, PROMPT, max_new_tokens=8)
    samples = group.samples
    assert samples.sample_ids == ["0/0", "0/1", "0/2"] and samples.group_ids == ["0"] * 3
    assert [row.tolist() for row in samples.prompt_ids.rows()] == [PROMPT] * 3
    check_described(samples, logits, 2e-3, **SAMPLING)


async def test_an_evaluation_alone_has_the_top_p_of_evaluations(rollout: RolloutClient, logits: Logits) -> None:
    likely = np.isfinite(distribution(logits(PROMPT)[0, -1], PROMPT, [], top_p=NUCLEUS))
    assert 1 < likely.sum() < 40
    evaluated = (await answers(rollout, PROMPT, evaluation=True, n=200, max_new_tokens=1))[0].samples.response_ids.values
    assert set(evaluated) == set(np.flatnonzero(likely))
    drawn = (await answers(rollout, PROMPT, n=200, max_new_tokens=1))[0].samples.response_ids.values
    assert not likely[drawn].all()


async def test_prompt_logprobs_come_with_every_answer(rollout: RolloutClient, logits: Logits) -> None:
    found = (await answers(rollout, PROMPT, max_new_tokens=1))[0].prompt_logprobs["0"]
    expected = log_softmax(logits(PROMPT)[0, :-1])
    np.testing.assert_array_equal(found.token_ids, np.stack([PROMPT[1:], expected.argmax(-1)], -1))
    np.testing.assert_allclose(found.logprobs, np.take_along_axis(expected, found.token_ids, -1), atol=2e-3)


async def test_prompts_and_responses_are_of_the_tokenizer_that_is_named(rollout: RolloutClient) -> None:
    """The model's own has the words in ascending order."""
    stream = rollout.generate([Prompt("t", text="w508 w507")], sampling=SamplingParams(n=1, max_new_tokens=4))
    group = (await collect(stream))["t"]
    assert group.samples.prompt_ids.values.tolist() == [3, 4]
    expected = [f"w{VOCABULARY - 1 - token}" for token in group.samples.response_ids.values if token > 2]
    assert group.texts[0].split() == expected
