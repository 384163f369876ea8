"""Adapters from a real trainer, on two tensor-parallel ranks, to two real vLLM replicas, by the coordinator's publishing."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from publications import BOUND_S, EPISODES, Crew, Stage, kill, on_stage
from rollout_side import collect
from sender_side import SentModel
from training import logprobs_of, train
from transformers import AutoModelForCausalLM
from updates import difference

from baton.api.common.v1 import weights_pb2
from baton.clients import RolloutClient, TrainerClient
from baton.clients.rollout import Prompt, SamplingParams
from baton.local.process_tree import descendants
from baton.weights import WeightPublisher
from models import make_model
from processes import ServiceProcess, TrainerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TOLERANCE = 1e-3
BASE, ADAPTER = weights_pb2.WEIGHT_CONTENT_BASE, weights_pb2.WEIGHT_CONTENT_ADAPTER


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def model(directory: Path) -> Path:
    return make_model(directory / "model", layers=2)


@pytest.fixture(scope="module")
def crew(directory: Path, model: Path, buffer: ServiceProcess) -> Iterator[Crew]:
    policy = {"model": str(model), "dtype": "float32", "seq_length": 64, "enforce_eager": True, "ignore_eos": True}
    lora = {"enable_lora": True, "lora_dim": 4, "lora_scaling": 8.0}
    runtime = {"sample_per_episode": 16, "train_micro_batch_size": 16, "train_global_batch_size": 16}
    trained = {"dtype": "float32", "lr": 3e-2, "tensor_model_parallel_size": 2, "lora": lora}
    run_file = directory / "run.yaml"
    run_file.write_text(yaml.safe_dump({"runtime": runtime, "models": {"policy": policy, "ppo_policy": trained}}))
    for name in ("a", "b"):
        (directory / name).mkdir()
    replicas = [ServiceProcess("rollout", run_file, directory / name) for name in ("a", "b")]
    processes = [TrainerProcess(run_file, directory, 2), *replicas]
    try:
        for process in processes:
            process.start(240)
        yield Crew(processes[0], replicas, buffer, "adapters")
    finally:
        for process in processes:
            kill(process)


@pytest.fixture(scope="module")
def base(model: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


async def unlike_the_trainer(stage: Stage, index: int) -> float:
    """The largest difference of a replica's log-probabilities from the trainer's."""
    prompts = [Prompt(f"p{number}", token_ids=[5 + number, 6, 7]) for number in range(4)]
    stream = stage.clients[index].generate(prompts, sampling=SamplingParams(temperature=0.0, max_new_tokens=12))
    groups = [group.samples for group in (await collect(stream)).values()]
    scored = [await logprobs_of(stage.services.trainer, samples) for samples in groups]
    pairs = zip(groups, scored, strict=True)
    return max(float(np.abs(ours.model_logprobs.values - theirs.values).max()) for ours, theirs in pairs)


async def test_replicas_get_the_base_once_then_adapters_alone_and_answer_as_the_trainer_does(
    crew: Crew, base: torch.nn.Module
) -> None:
    async with on_stage(crew) as stage:
        first, second, third = [await stage.publish() for _ in range(3)]
        whole = sum(parameter.nbytes for parameter in base.parameters())
        assert [one.base_bytes for one in (first, second, third)] == [whole, 0, 0]
        assert 0 < second.bytes == third.bytes < whole
        assert len({one.weights_digest for one in (first, second, third)}) == 3
        for index in range(2):
            await stage.serves(index, third)
            status = await stage.clients[index].get_status()
            assert list(status.adapter_versions) == [third.policy_version]
            unlike, from_base = await unlike_the_trainer(stage, index), await difference(
                stage.clients[index], base, third.policy_version
            )  # fmt: skip
            print(f"differs from the trainer by {unlike:.1e}, from the base by {from_base:.1e}")
            assert unlike < TOLERANCE < 0.01 < from_base


async def test_a_replica_that_died_is_caught_up_with_base_and_adapter_while_the_other_goes_on_with_what_it_has(
    crew: Crew,
) -> None:
    async with on_stage(crew) as stage:
        before = await stage.publish()
        stage.clients[1].before["update_weights"] = lambda: kill(crew.replicas[1])
        after = await stage.publish()
        print(f"the version is out after {stage.took_s:.1f} s of {BOUND_S:g}")
        assert stage.took_s < BOUND_S
        assert after.committed == (stage.clients[0].address,)
        assert after.weights_digest != before.weights_digest
        assert after.base_bytes == 0, "the other had it"
        await stage.serves(0, after)
        await asyncio.to_thread(crew.replicas[1].start, 240)
        print(f"back with the version after {await stage.is_caught_up(1, after):.1f} s")
        assert await unlike_the_trainer(stage, 1) < TOLERANCE


async def test_a_replica_whose_engine_hangs_is_left_out_in_time_and_gets_the_adapter_when_it_is_back(crew: Crew) -> None:
    async with on_stage(crew) as stage:
        before = await stage.publish()
        await stage.serves(1, before)
        engine = descendants(crew.replicas[1].popen.pid)

        def stop() -> None:
            for pid in engine:
                os.kill(pid, signal.SIGSTOP)

        stage.clients[1].before["update_weights"] = stop
        try:
            after = await stage.publish()
            print(f"the version is out after {stage.took_s:.1f} s of {BOUND_S:g}")
            assert stage.took_s < BOUND_S
            assert after.committed == (stage.clients[0].address,)
            await stage.serves(0, after)
        finally:
            for pid in engine:
                os.kill(pid, signal.SIGCONT)
        print(f"back with the version after {await stage.is_caught_up(1, after):.1f} s")
        assert await unlike_the_trainer(stage, 1) < TOLERANCE


class Told(RolloutClient):
    """Keeps what the replica was sent."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.contents: list[int] = []

    async def update_weights(self, version: int, group: weights_pb2.WeightGroup, **options: Any) -> Any:
        self.contents.append(group.content)
        return await super().update_weights(version, group, **options)


async def test_the_base_goes_to_those_alone_that_do_not_hold_it(crew: Crew, base: torch.nn.Module) -> None:
    """One was given whole weights meanwhile."""
    version, whole = crew.version + 1, sum(parameter.nbytes for parameter in base.parameters())
    first, second = (Told(replica.address) for replica in crew.replicas)
    async with TrainerClient(crew.trainer.address) as trainer, first, second:
        await second.commit_weights(version, await SentModel(base).update(second, version))
        second.contents.clear()
        publication = await WeightPublisher(trainer, [first, second]).publish(version + 1)
        crew.version = version + 1
        assert (first.contents, second.contents) == ([ADAPTER], [BASE, ADAPTER])
        assert publication.base_bytes == whole
        for replica in (first, second):
            assert await difference(replica, base, version + 1) > 0.01


async def test_a_loop_that_has_loaded_a_checkpoint_goes_on_publishing_and_what_it_loaded_is_served(
    crew: Crew, tmp_path: Path
) -> None:
    replicas = [RolloutClient(replica.address, timeout_s=30) for replica in crew.replicas]
    async with TrainerClient(crew.trainer.address, timeout_s=60) as trainer, replicas[0], replicas[1]:
        publisher = WeightPublisher(trainer, replicas)
        saved = await publisher.publish(crew.version + 1)
        checkpoint = await trainer.save_checkpoint(str(tmp_path))
        await train(trainer, crew.buffer.address, crew.run_id, next(EPISODES))
        trained = await publisher.publish(crew.version + 2)
        await trainer.load_checkpoint(checkpoint.path)
        loaded = await publisher.publish(crew.version + 3)
        crew.version += 3
        assert loaded.weights_digest == saved.weights_digest != trained.weights_digest
        assert (loaded.base_bytes, len(loaded.committed)) == (0, 2)
