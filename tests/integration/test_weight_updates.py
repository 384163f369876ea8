"""Weight updates of a real replica that break off, meet, or find responses under way; the sender is the test itself."""

import copy
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rollout_side import collect, vllm_service
from sender_side import SentModel
from transformers import AutoModelForCausalLM

from baton.clients import RolloutClient
from baton.clients.rollout import Prompt, SamplingParams
from baton.errors import BatonError
from models import make_model
from processes import ServiceProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CONTEXT = 2048
PROMPT = [5, 6, 7, 6]
LAYER = "model.layers.1"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("updated") / "model", layers=2, positions=CONTEXT)


@pytest.fixture(scope="module")
def process(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    service = vllm_service(tmp_path_factory.mktemp("rollout"), model, seq_length=CONTEXT, ignore_eos=True)
    try:
        yield service.start(timeout_s=240)
    finally:
        service.kill()


@pytest.fixture
async def rollout(process: ServiceProcess) -> AsyncIterator[RolloutClient]:
    async with RolloutClient(process.address) as client:
        yield client


@pytest.fixture(scope="module")
def loaded(model: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def changed(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The same model with other weights throughout."""
    other, random = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return other


async def difference(rollout: RolloutClient, model: torch.nn.Module, version: int) -> float:
    """The largest one of log-probabilities between what the replica samples and this model, by transformers."""
    stream = rollout.generate(
        [Prompt("g", token_ids=PROMPT)], sampling=SamplingParams(temperature=0.0, max_new_tokens=16), exact_version=version
    )
    samples = (await collect(stream))["g"].samples
    tokens = torch.tensor([*PROMPT, *samples.response_ids.values.tolist()])
    with torch.no_grad():
        logprobs = model(tokens[None]).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
    expected = logprobs.gather(1, tokens[len(PROMPT) :, None])[:, 0].numpy()
    return float(np.abs(expected - samples.model_logprobs.values).max())


async def next_version(rollout: RolloutClient) -> int:
    return (await rollout.get_status()).policy_version + 1


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
