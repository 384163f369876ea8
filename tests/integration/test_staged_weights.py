"""Weights that arrive while a replica generates: it serves the old ones until all are there, and pauses to copy them."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import torch
from rollout_side import collect, until_begun, vllm_service
from sender_side import SentModel
from transformers import AutoModelForCausalLM
from updates import changed, difference, next_version

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.clients import RolloutClient, RolloutControlClient
from baton.clients.rollout import Prompt, SamplingParams
from baton.errors import BatonError
from models import make_model
from processes import ServiceProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CONTEXT = 8192
HELD_AT = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("staged") / "model", layers=2, positions=CONTEXT)


@pytest.fixture(scope="module")
def process(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    service = vllm_service(
        tmp_path_factory.mktemp("rollout"), model, seq_length=CONTEXT, ignore_eos=True, weight_staging_gib=0.1
    )
    try:
        yield service.start(timeout_s=240)
    finally:
        service.kill()


@pytest.fixture
async def rollout(process: ServiceProcess) -> AsyncIterator[RolloutClient]:
    async with RolloutClient(process.address) as client:
        yield client


@pytest.fixture
async def control(process: ServiceProcess) -> AsyncIterator[RolloutControlClient]:
    async with RolloutControlClient(process.address) as client:
        yield client


@pytest.fixture(scope="module")
def loaded(model: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


async def serve(rollout: RolloutClient, weights: torch.nn.Module) -> int:
    version = await next_version(rollout)
    await rollout.commit_weights(version, await SentModel(weights).update(rollout, version))
    return version


async def test_while_weights_arrive_the_old_ones_are_served_also_if_the_rest_never_comes(
    rollout: RolloutClient, loaded: torch.nn.Module
) -> None:
    old = changed(loaded, seed=1)
    version = await serve(rollout, old)
    assert await difference(rollout, old, version) < 1e-3
    broken = SentModel(changed(loaded, seed=2))
    update = asyncio.create_task(broken.update(rollout, version + 1, stop_after=HELD_AT))
    while "is arriving" not in (await rollout.get_status()).state_reason:
        await asyncio.sleep(0.05)
    assert await difference(rollout, old, version) < 1e-3, "asked for in the midst of the update"
    broken.may_go_on.set()
    with pytest.raises(BatonError, match=f"the update to version {version + 1} failed"):
        await update
    status = await rollout.get_status()
    assert (status.state, status.policy_version) == (pb.REPLICA_STATE_HEALTHY, version)
    assert await difference(rollout, old, version) < 1e-3
    new = changed(loaded, seed=3)
    assert await serve(rollout, new) == version + 1
    assert await difference(rollout, new, version + 1) < 1e-3


async def test_responses_go_on_while_weights_arrive_and_with_the_new_ones_after_the_commit(
    rollout: RolloutClient, control: RolloutControlClient, loaded: torch.nn.Module
) -> None:
    version = await serve(rollout, changed(loaded, seed=4))
    sampling = SamplingParams(max_new_tokens=8000, temperature=1.0)
    under_way = asyncio.create_task(collect(rollout.generate([Prompt("g", token_ids=[5, 6])], sampling=sampling)))
    await until_begun(rollout, 1)
    new = changed(loaded, seed=5)
    digest = await SentModel(new).update(rollout, version + 1, in_flight="keep")
    assert (await rollout.get_status()).state == pb.REPLICA_STATE_HEALTHY
    generated = (await rollout.get_status()).generated_tokens
    assert not under_way.done()
    commit = await rollout.commit_weights(version + 1, digest)
    assert commit.pause_s > 0
    assert 0 < commit.load_s <= commit.pause_s
    await until_begun(rollout, 1)
    assert await control.abort(["g"]) == 1
    samples = (await under_way)["g"].samples
    assert samples.span_versions.values.tolist() == [version, version + 1]
    assert samples.span_tokens.values.min() > 0
    assert (await rollout.get_status()).generated_tokens > generated
    assert await difference(rollout, new, version + 1) < 1e-3
