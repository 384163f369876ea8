"""Weight updates of a real replica that break off, meet, or find responses under way; the sender is the test itself."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from rollout_side import collect, engine_stopped
from sender_side import SentModel
from transformers import AutoModelForCausalLM
from updates import PROMPT, changed, difference, next_version

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.clients import RolloutClient
from baton.clients.rollout import Prompt, SamplingParams
from baton.errors import BatonError, DeadlineError, NotReadyError
from baton.samples import FinishReason
from processes import ServiceProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LAYER = "model.layers.1"


@pytest.fixture(scope="module")
def model(long_model: Path) -> Path:
    return long_model


@pytest.fixture(scope="module")
def process(long_replica: ServiceProcess) -> ServiceProcess:
    return long_replica


@pytest.fixture
async def rollout(process: ServiceProcess) -> AsyncIterator[RolloutClient]:
    async with RolloutClient(process.address) as client:
        yield client


@pytest.fixture(scope="module")
def loaded(model: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


@pytest.mark.parametrize("last", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj"])
async def test_after_an_update_that_broke_off_the_next_whole_one_is_served_and_nothing_of_the_first(
    rollout: RolloutClient, loaded: torch.nn.Module, last: str
) -> None:
    """q, k and v, and gate and up, are parts of one layer of the engine, which is filled when all have come."""
    version, whole = await next_version(rollout), changed(loaded, seed=2)
    broken = SentModel(changed(loaded, seed=1))
    broken.may_go_on.set()
    with pytest.raises(BatonError, match=f"the update to version {version} failed: .*a member of the group died"):
        await broken.update(rollout, version, stop_after=f"{LAYER}.{last}.weight")
    await rollout.commit_weights(version, await SentModel(whole).update(rollout, version))
    assert await difference(rollout, whole, version) < 1e-3


async def test_no_request_for_a_version_is_answered_by_the_one_that_came_while_it_was_under_way(
    rollout: RolloutClient, loaded: torch.nn.Module
) -> None:
    """Most of these have hardly begun: the engine does not know them yet when the weights come."""
    version = await next_version(rollout)
    await rollout.commit_weights(version, await SentModel(changed(loaded, seed=3)).update(rollout, version))
    prompts = [Prompt(f"p{number}", token_ids=[5, number] * 200) for number in range(256)]
    stream = rollout.generate(prompts, sampling=SamplingParams(n=2, max_new_tokens=512), exact_version=version)
    call = asyncio.create_task(collect(stream))
    while not (await rollout.get_status()).running_requests:
        await asyncio.sleep(0)
    digest = await SentModel(changed(loaded, seed=4)).update(rollout, version + 1)
    await rollout.commit_weights(version + 1, digest)
    samples = [group.samples for group in (await call).values()]
    assert {why for group in samples for why in group.finish_reasons} == {FinishReason.ABORT}
    assert {number for group in samples for number in group.span_versions.values[group.span_tokens.values > 0]} <= {version}


async def test_an_engine_that_sleeps_past_a_deadline_is_told_from_one_that_is_ready_and_takes_the_next_update(
    process: ServiceProcess, rollout: RolloutClient, loaded: torch.nn.Module
) -> None:
    version, whole = await next_version(rollout), changed(loaded, seed=6)
    begin_s = 3.0
    with engine_stopped(process):
        started = time.monotonic()
        with pytest.raises(DeadlineError, match=r"begin: the engine did not stand still.* within 3 s; raise deadlines"):
            await rollout.update_weights(version, SentModel(whole).group, first_rank=1, begin_s=begin_s, timeout_s=5)
        took_s = time.monotonic() - started
        print(f"told after {took_s:.1f} s of {begin_s:g}")
        assert took_s < begin_s + 20
        status = await rollout.get_status()
        assert (status.state, status.ending_update) == (pb.REPLICA_STATE_STALE, True)
        assert "its engine is not out of that yet" in status.state_reason
        with pytest.raises(NotReadyError, match="begin: the engine did not stand still"):
            await collect(rollout.generate([Prompt("g", token_ids=PROMPT)], timeout_s=30))
    async with asyncio.timeout(60):
        while (await rollout.get_status()).ending_update:
            await asyncio.sleep(0.05)
    await rollout.commit_weights(version, await SentModel(whole).update(rollout, version))
    assert await difference(rollout, whole, version) < 1e-3


async def test_a_beam_search_under_way_ends_when_weights_come(rollout: RolloutClient, loaded: torch.nn.Module) -> None:
    version = await next_version(rollout)
    sampling = SamplingParams(use_beam_search=True, n=4, max_new_tokens=1500)
    call = asyncio.create_task(collect(rollout.generate([Prompt("g", token_ids=PROMPT)], sampling=sampling)))
    while not (await rollout.get_status()).running_requests:
        assert not call.done(), call.exception()
        await asyncio.sleep(0.01)
    await rollout.commit_weights(version, await SentModel(loaded).update(rollout, version))
    with pytest.raises(NotReadyError, match="the beam search was aborted, or new weights came in its midst"):
        await call
    assert await difference(rollout, loaded, version) < 1e-3


async def test_a_second_update_is_refused_while_one_arrives_and_taken_after_its_caller_left(
    rollout: RolloutClient, loaded: torch.nn.Module
) -> None:
    version, first = await next_version(rollout), SentModel(changed(loaded, seed=5))
    arriving = asyncio.create_task(first.update(rollout, version, stop_after=f"{LAYER}.self_attn.q_proj.weight"))
    while "is arriving" not in (await rollout.get_status()).state_reason:
        await asyncio.sleep(0.01)
    with pytest.raises(NotReadyError, match=f"no weights can be taken: version {version} is arriving"):
        await rollout.update_weights(version + 1, SentModel(loaded).group, first_rank=1, timeout_s=30)
    arriving.cancel()
    await asyncio.wait([arriving])
    while "is arriving" in (await rollout.get_status()).state_reason:
        await asyncio.sleep(0.01)
    await rollout.commit_weights(version, await SentModel(loaded).update(rollout, version))
    assert await difference(rollout, loaded, version) < 1e-3
