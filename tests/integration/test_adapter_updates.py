"""Low-rank adapters that come to a real replica while it serves: each request is computed with one, from begin to end."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
import torch
from adapters import Sender, running
from lora_factors import random_factors
from rollout_side import collect, engine_stopped, until_begun
from sender_side import SentAdapter, SentModel
from transformers import AutoModelForCausalLM
from updates import PROMPT, changed, difference, next_version

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.clients import RolloutClient, RolloutRecordingClient
from baton.clients.rollout import Prompt, SamplingParams
from baton.errors import BatonError, DeadlineError, DigestMismatchError, NotReadyError, ServiceFaultError
from baton.samples import FinishReason, Samples
from models import make_model
from processes import ServiceProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CONTEXT, WHOLE, LONG = 8192, 2000, 8000
"""Tokens: of the context, of a long response that is waited for, and of one that must not end by itself."""
TOLERANCE = 1e-3
BLOCKS = [5 + number % 400 for number in range(300)]
"""A prompt of more than one block of the cache."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("adapted") / "model", layers=2, positions=CONTEXT, tied=False)


@pytest.fixture(scope="module")
def process(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    yield from running(tmp_path_factory.mktemp("rollout"), model, seq_length=CONTEXT)


@pytest.fixture
async def rollout(process: ServiceProcess) -> AsyncIterator[RolloutClient]:
    async with RolloutClient(process.address) as client:
        yield client


@pytest.fixture(scope="module")
def base(model: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


@pytest.fixture
async def sender(rollout: RolloutClient, base: torch.nn.Module) -> Sender:
    return Sender(rollout, base)


def distance(model: torch.nn.Module, samples: Samples, row: int = 0) -> float:
    """The largest one of log-probabilities between a sample's and this model's."""
    prompt, response = (column.rows()[row].tolist() for column in (samples.prompt_ids, samples.response_ids))
    tokens = torch.tensor([*prompt, *response])
    with torch.no_grad():
        logprobs = model(tokens[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    expected = logprobs.gather(1, tokens[len(prompt) :, None])[:, 0].numpy()
    return float(np.abs(expected - samples.model_logprobs.rows()[row]).max())


async def begun(rollout: RolloutClient, limit: int = LONG, exact_version: int | None = None) -> asyncio.Task:
    """A long response, once it has tokens; the task ends with the groups by name."""
    sampling = SamplingParams(max_new_tokens=limit, temperature=1.0)
    stream = rollout.generate([Prompt("old", token_ids=PROMPT)], sampling=sampling, exact_version=exact_version)
    call = asyncio.create_task(collect(stream))
    await until_begun(rollout, 1)
    return call


async def held(rollout: RolloutClient, versions: list[int]) -> None:
    """Until the replica holds the adapters of these versions alone."""
    async with asyncio.timeout(60):
        while list((await rollout.get_status()).adapter_versions) != versions:
            await asyncio.sleep(0.02)


async def test_an_adapter_is_served_only_over_a_base_that_was_sent_and_samples_are_by_both(
    sender: Sender, rollout: RolloutClient, base: torch.nn.Module
) -> None:
    factors = random_factors(base, seed=1)
    with pytest.raises(NotReadyError, match=r"this adapter is for weights 0f, and the trainer has sent none here; send the"):
        await SentAdapter(factors, "0f").update(rollout, 1)
    digest = await sender.base_digest()
    status = await rollout.get_status()
    assert (status.state, status.base_digest) == (pb.REPLICA_STATE_STALE, digest)
    with pytest.raises(NotReadyError, match="the base of version 1 has arrived, and its adapter is to come"):
        await collect(rollout.generate([Prompt("g", token_ids=PROMPT)], timeout_s=30))
    version, adapted = await sender.serve(seed=1)
    print(f"log-probabilities differ from the merged model's by {await difference(rollout, adapted, version):.1e}, "
          f"from the base's by {await difference(rollout, base, version):.1e}")  # fmt: skip
    assert await difference(rollout, adapted, version) < TOLERANCE
    assert await difference(rollout, base, version) > 0.1
    other, otherwise = await sender.serve(seed=2)
    assert await difference(rollout, otherwise, other) < TOLERANCE
    assert await difference(rollout, adapted, other) > 0.1
    await held(rollout, [other])
    samples = (await collect(rollout.generate([Prompt("g", token_ids=PROMPT)])))["g"].samples
    assert samples.weights_digests == [(await rollout.get_status()).weights_digest]


async def test_whatever_a_request_is_it_is_computed_with_the_adapter(
    sender: Sender, rollout: RolloutClient, process: ServiceProcess
) -> None:
    """A beam search, log-probabilities of prompts, an evaluation, and an agent's request by HTTP."""
    version, adapted = await sender.serve(seed=3)
    beam = SamplingParams(use_beam_search=True, n=2, max_new_tokens=6)
    searched = (await collect(rollout.generate([Prompt("g", token_ids=PROMPT)], sampling=beam)))["g"].samples
    assert max(distance(adapted, searched, row) for row in range(2)) < TOLERANCE
    assert searched.policy_version_min.tolist() == [version] * 2
    evaluated = (await collect(rollout.generate([Prompt("g", token_ids=PROMPT)], evaluation=True)))["g"].samples
    assert distance(adapted, evaluated) < TOLERANCE
    asked = SamplingParams(prompt_logprobs=0, max_new_tokens=1)
    group = (await collect(rollout.generate([Prompt("g", token_ids=BLOCKS)], sampling=asked)))["g"]
    with torch.no_grad():
        logprobs = adapted(torch.tensor([BLOCKS])).logits[0, :-1].log_softmax(-1)
    expected = logprobs.gather(1, torch.tensor(BLOCKS[1:])[:, None])[:, 0].numpy()
    assert np.abs(group.prompt_logprobs["g"].logprobs[:, 0] - expected).max() < TOLERANCE
    async with RolloutRecordingClient(process.address) as recording:
        url = await recording.base_url("agent")
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as agent:
            await agent.completions.create(model=str(sender.base.name_or_path), prompt=PROMPT, max_tokens=6)
        (recorded,) = await recording.recorded(["agent"])
        await recording.forget([recorded])
    assert distance(adapted, recorded.samples) < TOLERANCE
    assert recorded.samples.policy_version_min.tolist() == [version]


async def test_a_response_ends_under_the_adapter_that_it_began_with_while_others_begin_under_the_next_and_its_place_is_freed(
    sender: Sender, rollout: RolloutClient
) -> None:
    version, old = await sender.serve(seed=4)
    prefix = [Prompt("p", token_ids=BLOCKS)]
    cached = (await collect(rollout.generate(prefix)))["p"].samples
    under_way = await begun(rollout, WHOLE, version)
    following, new = await sender.serve(seed=5)
    assert not under_way.done()
    fresh = (await collect(rollout.generate(prefix, exact_version=following)))["p"].samples
    assert distance(old, cached) < TOLERANCE
    assert distance(new, fresh) < TOLERANCE, "blocks that another adapter has computed must not be read"
    assert not under_way.done()
    assert list((await rollout.get_status()).adapter_versions) == [version, following]
    samples = (await under_way)["old"].samples
    assert samples.finish_reasons.tolist() == [FinishReason.LENGTH]
    assert (samples.span_versions.values.tolist(), samples.span_tokens.values.tolist()) == ([version], [WHOLE])
    assert distance(old, samples) < TOLERANCE
    await held(rollout, [following])


async def test_what_is_not_drained_when_the_one_after_the_next_comes_is_ended_in_time_or_if_waited_for_holds_that_up(
    sender: Sender, rollout: RolloutClient
) -> None:
    first, _ = await sender.serve(seed=6)
    under_way = await begun(rollout)
    second, served = await sender.serve(seed=7)
    started = time.monotonic()
    with pytest.raises(DeadlineError, match=r"under an older adapter, had not ended, within 0.5 s; raise deadlines"):
        await sender.serve(seed=8, in_flight="wait", begin_s=0.5)
    assert time.monotonic() - started < 20
    assert not under_way.done()
    assert await difference(rollout, served, second) < TOLERANCE, "what is served goes on"
    third, served = await sender.serve(seed=8, begin_s=8.0)
    samples = (await under_way)["old"].samples
    assert samples.finish_reasons.tolist() == [FinishReason.ABORT]
    assert samples.span_versions.values.tolist() == [first]
    assert 0 < samples.span_tokens.values[0] < LONG
    assert await difference(rollout, served, third) < TOLERANCE


async def test_with_abort_the_commit_ends_what_began_before(sender: Sender, rollout: RolloutClient) -> None:
    first, _ = await sender.serve(seed=9)
    under_way = await begun(rollout)
    await sender.serve(seed=10, in_flight="abort")
    samples = (await under_way)["old"].samples
    assert samples.finish_reasons.tolist() == [FinishReason.ABORT]
    assert samples.span_versions.values.tolist() == [first]


async def test_no_request_for_a_version_is_answered_by_the_one_that_came_while_it_was_under_way(
    sender: Sender, rollout: RolloutClient
) -> None:
    """Most of these have hardly begun: the engine does not know them yet when the adapter comes."""
    version, _ = await sender.serve(seed=11)
    prompts = [Prompt(f"p{number}", token_ids=[5, 3 + number]) for number in range(128)]
    sampling = SamplingParams(max_new_tokens=64)
    call = asyncio.create_task(collect(rollout.generate(prompts, sampling=sampling, exact_version=version)))
    while not (await rollout.get_status()).running_requests and not call.done():
        await asyncio.sleep(0)
    await sender.serve(seed=12)
    versions = {one for group in (await call).values() for one in group.samples.span_versions.values.tolist()}
    assert versions == {version}


async def test_while_an_adapter_arrives_the_old_one_is_served_also_if_the_rest_never_comes(
    sender: Sender, rollout: RolloutClient, base: torch.nn.Module
) -> None:
    version, served = await sender.serve(seed=13)
    broken = await sender.adapter(random_factors(base, seed=14))
    update = asyncio.create_task(
        broken.update(rollout, version + 1, stop_after="model.layers.1.mlp.up_proj.lora_A.weight")
    )
    while "is arriving" not in (await rollout.get_status()).state_reason:
        await asyncio.sleep(0.02)
    assert await difference(rollout, served, version) < TOLERANCE, "asked for in the midst of the update"
    broken.may_go_on.set()
    with pytest.raises(BatonError, match=f"the update to version {version + 1} failed: .*a member of the group died"):
        await update
    status = await rollout.get_status()
    assert (status.state, status.policy_version) == (pb.REPLICA_STATE_HEALTHY, version)
    assert await difference(rollout, served, version) < TOLERANCE
    following, served = await sender.serve(seed=15)
    assert await difference(rollout, served, following) < TOLERANCE


async def test_an_engine_that_hangs_is_told_in_time_and_takes_the_next_adapter_when_it_is_back(
    process: ServiceProcess, sender: Sender, rollout: RolloutClient, base: torch.nn.Module
) -> None:
    version, _ = await sender.serve(seed=16)
    hanging = await sender.adapter(random_factors(base, seed=17))
    with engine_stopped(process):
        started = time.monotonic()
        with pytest.raises(DeadlineError, match=r"transfer: not all weights arrived within 2 s; raise deadlines.publish_s"):
            await rollout.update_weights(version + 1, hanging.group, first_rank=1, timeout_s=2, in_flight="keep")
        assert time.monotonic() - started < 20
        assert (await rollout.get_status()).ending_update
    following, served = await sender.serve(seed=18)
    assert await difference(rollout, served, following) < TOLERANCE
    await held(rollout, [following])


async def test_an_adapter_with_another_digest_or_for_what_vllm_does_not_adapt_is_not_served(
    sender: Sender, rollout: RolloutClient, base: torch.nn.Module
) -> None:
    version, served = await sender.serve(seed=19)
    sent = await sender.adapter(random_factors(base, seed=20))
    await sent.update(rollout, version + 1, in_flight="keep")
    with pytest.raises(DigestMismatchError, match=f"version {version + 1} arrived with digest"):
        await rollout.commit_weights(version + 1, "0" * 32)
    norm = {"model.norm.lora_A.weight": torch.ones(4, 64), "model.norm.lora_B.weight": torch.ones(64, 4)}
    further = await sender.adapter(random_factors(base, seed=20) | norm)
    with pytest.raises(BatonError, match=r"vLLM cannot adapt 1 of the modules .*\(model.norm\); set .*sync to merged"):
        await further.update(rollout, version + 1)
    half = await sender.adapter({"model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(4, 64)})
    with pytest.raises(ServiceFaultError, match="one factor without the other"):
        await half.update(rollout, version + 1)
    assert await difference(rollout, served, version) < TOLERANCE


async def test_whole_weights_end_all_adapters_and_the_next_adapter_wants_its_base_again(
    sender: Sender, rollout: RolloutClient, base: torch.nn.Module
) -> None:
    await sender.serve(seed=21)
    version, whole = await next_version(rollout), changed(base, seed=22)
    await rollout.commit_weights(version, await SentModel(whole).update(rollout, version))
    assert await difference(rollout, whole, version) < TOLERANCE
    status = await rollout.get_status()
    assert (status.base_digest, list(status.adapter_versions)) == ("", [])
    version, adapted = await sender.serve(seed=23)
    assert await difference(rollout, adapted, version) < TOLERANCE
