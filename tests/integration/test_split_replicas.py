"""One replica of two vLLM workers, on tensor or pipeline parallel shards: it answers, and takes updates whole, and adapters
of which each worker has its part."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from adapters import Sender, running
from rollout_side import collect
from sender_side import SentModel
from transformers import AutoModelForCausalLM
from updates import changed, difference, next_version

from baton.clients import RolloutClient
from baton.clients.rollout import Prompt, SamplingParams
from baton.errors import NotReadyError, ServiceFaultError
from baton.local.process_tree import descendants
from models import make_model
from processes import ServiceProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SPLITS = {"tp2": {"tensor_model_parallel_size": 2}, "pp2": {"pipeline_model_parallel_size": 2}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("split") / "model", layers=4)


@pytest.fixture(scope="module", params=SPLITS)
def process(
    request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:  # fmt: skip
    yield from running(tmp_path_factory.mktemp(request.param), model, seq_length=64, **SPLITS[request.param])


@pytest.fixture
async def rollout(process: ServiceProcess) -> AsyncIterator[RolloutClient]:
    async with RolloutClient(process.address) as client:
        yield client


@pytest.fixture(scope="module")
def loaded(model: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


async def test_the_workers_answer_as_one_and_share_one_cache(rollout: RolloutClient, loaded: torch.nn.Module) -> None:
    status = await rollout.get_status()
    assert status.workers == 2
    per_token = 2 * 4 * 2 * 32 * 4  # key and value of 4 layers, 2 heads and 32 floats
    cache_gib = status.cache_blocks * status.cache_block_tokens * per_token / 2**30
    assert 0.95 < cache_gib <= 1, "models.policy.cpu_kv_cache_gib is 1"
    assert await difference(rollout, loaded, version=0) < 1e-3
    prompts = [Prompt(f"g{number}", token_ids=[5, number]) for number in range(3, 40)]
    groups = await collect(rollout.generate(prompts, sampling=SamplingParams(n=4)))
    assert {tuple(group.samples.response_ids.lengths) for group in groups.values()} == {(8, 8, 8, 8)}


async def test_an_update_reaches_every_worker_whole(rollout: RolloutClient, loaded: torch.nn.Module) -> None:
    version, other = await next_version(rollout), changed(loaded, seed=1)
    digest = await SentModel(other, workers=2).update(rollout, version)  # the digest of all workers is the sender's
    await rollout.commit_weights(version, digest)
    assert await difference(rollout, other, version) < 1e-3


@pytest.mark.parametrize("layer", [0, 3])
async def test_after_an_update_that_one_worker_could_not_take_the_next_one_is_taken_by_both(
    rollout: RolloutClient, loaded: torch.nn.Module, layer: int
) -> None:
    """A tensor that is none of the model's, of a layer that on pipeline stages one worker alone has: the other one loads all
    of the update."""
    version, whole = await next_version(rollout), changed(loaded, seed=2)
    broken = SentModel(whole, workers=2, **{f"model.layers.{layer}.mlp.nothing.weight": torch.zeros(1)})
    with pytest.raises(ServiceFaultError, match=rf"the update to version {version} failed: [12] of 2 workers .*nothing"):
        await broken.update(rollout, version)
    with pytest.raises(NotReadyError, match=f"the update to version {version} failed"):
        await collect(rollout.generate([Prompt("g", token_ids=[5])]))
    await rollout.commit_weights(version, await SentModel(whole, workers=2).update(rollout, version))
    assert await difference(rollout, whole, version) < 1e-3


async def test_each_worker_has_its_part_of_an_adapter(rollout: RolloutClient, loaded: torch.nn.Module) -> None:
    sender = Sender(rollout, loaded, workers=2)
    for seed in (3, 4):
        version, adapted = await sender.serve(seed)
        assert await difference(rollout, adapted, version) < 1e-3
        assert await difference(rollout, loaded, version) > 0.1


def test_nothing_is_left_of_a_replica_that_is_killed(process: ServiceProcess) -> None:
    """The last test of this file: it leaves no replica to the others."""
    below = [psutil.Process(pid) for pid in descendants(process.popen.pid)]
    assert len(below) >= 3, "the engine and two workers"
    memory = {Path(mapped.path) for one in below for mapped in one.memory_maps() if mapped.path.startswith("/dev/shm/")}
    assert [file for file in memory if file.exists()], "they talk over shared memory"
    process.kill()
    assert psutil.wait_procs(below, timeout=60)[1] == []
    assert [file for file in memory if file.exists()] == []
