"""Every trainer layout updates every kind of replica, alone and together, to the very bits of its export; and leaks nothing.

The replicas start from the model that the trainers start from, so what they answer then, by their own loading of it, is what
they must answer again, to the last bit, after they were given other weights and then the trainer's."""


from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from rollout_side import collect, vllm_service
from safetensors.torch import load_file
from sender_side import SentModel
from training import trainer
from transformers import AutoModelForCausalLM
from updates import changed

from baton.clients import RolloutClient, TrainerClient
from baton.clients.rollout import Prompt, SamplingParams
from baton.local.process_tree import descendants
from baton.publication import Publication
from baton.weights import WeightPublisher
from models import make_model
from processes import ServiceProcess, StaticProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TRAINERS = {"tp1": (1, 1), "tp2": (2, 1), "pp2": (1, 2), "tp2-pp2": (2, 2)}
"""(TP, PP)"""
REPLICAS = ["static tp1", "static tp2", "vllm tp2"]
"""vLLM on one worker is test_trainer_and_rollout_agree's."""
PAIRINGS = [["static tp1"], ["vllm tp2"], REPLICAS]
"""What is updated at once."""
PROMPT = [5 + number % 200 for number in range(40)]
UPDATES, WARM_UP = 50, 10


@dataclass
class Replica:
    """A running one, and what it answered before it was given any weights."""

    process: ServiceProcess
    workers: int
    at_start: bytes = b""


@dataclass
class Place:
    """What all trainers work with."""

    model: Path
    run_file: Path
    replicas: dict[str, Replica]
    versions: Iterator[int] = field(default_factory=lambda: count(1))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("pairings")
    model = make_model(directory / "model", vocabulary=8192)
    runtime = {
        "sample_per_episode": 16, "train_micro_batch_size": 4, "train_global_batch_size": 16, "coalesced_buffer_mb": 1,
    }  # fmt: skip
    policy = {
        "model": str(model), "dtype": "float32", "seq_length": 96, "generator": "megatron", "ignore_eos": True,
        "max_new_tokens": 16,
    }  # fmt: skip
    run_file = directory / "run.yaml"
    models = {"policy": policy, "ppo_policy": {"dtype": "float32"}}
    run_file.write_text(yaml.safe_dump({"runtime": runtime, "models": models}))
    replicas = {}
    try:
        for size in (1, 2):
            (own := directory / f"static{size}").mkdir()
            split = ("--set", f"models.policy.tensor_model_parallel_size={size}")
            replicas[f"static tp{size}"] = Replica(StaticProcess(run_file, own, size, *split), size)
        (own := directory / "vllm").mkdir()
        options = {"tensor_model_parallel_size": 2, "seq_length": 96, "ignore_eos": True, "max_new_tokens": 16}
        replicas["vllm tp2"] = Replica(vllm_service(own, model, **options), 2)
        for replica in replicas.values():
            replica.process.start(240)
        yield Place(model, run_file, replicas)
    finally:
        for replica in replicas.values():
            replica.process.kill()


@asynccontextmanager
async def clients(place: Place) -> AsyncIterator[dict[str, RolloutClient]]:
    """By replica; what each answers at its start is asked for the first time."""
    opened = {name: RolloutClient(replica.process.address, timeout_s=60) for name, replica in place.replicas.items()}
    for name, client in opened.items():
        place.replicas[name].at_start = place.replicas[name].at_start or await answer(client, 0)
    yield opened
    for client in opened.values():
        await client.close()


async def answer(client: RolloutClient, version: int) -> bytes:
    """Tokens and log-probabilities of one greedy response."""
    greedy = SamplingParams(temperature=0.0)
    stream = client.generate([Prompt("g", token_ids=PROMPT)], sampling=greedy, exact_version=version)
    samples = (await collect(stream))["g"].samples
    assert np.ptp(samples.model_logprobs.values) > 0
    return samples.response_ids.values.tobytes() + samples.model_logprobs.values.tobytes()


async def disturb(place: Place, name: str, client: RolloutClient, seed: int) -> None:
    """Gives the replica other weights, and fails if that changes nothing."""
    loaded = AutoModelForCausalLM.from_pretrained(place.model, dtype=torch.float32)
    version, sent = next(place.versions), SentModel(changed(loaded, seed), workers=place.replicas[name].workers)
    await client.commit_weights(version, await sent.update(client, version))
    assert await answer(client, version) != place.replicas[name].at_start


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Of a Hugging Face directory, by name."""
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def parameter_bytes(model: Path, split: int) -> int:
    """Of one of `split` workers, in float32: vectors are whole on each, matrices shared out."""
    return sum(4 * tensor.numel() // (1 if tensor.dim() == 1 else split) for tensor in tensors(model).values())


def check_all_was_compared(publication: Publication, place: Place, names: list[str]) -> None:
    """vLLM on a CPU keeps its weights in a form of its own, which its answers alone can tell of."""
    direct = [name for name in names if name.startswith("static")]
    if direct == names:
        assert publication.direct
        assert publication.verified_bytes == min(parameter_bytes(place.model, place.replicas[one].workers) for one in names)


@pytest.mark.parametrize("layout", TRAINERS)
async def test_each_trainer_layout_updates_each_replica_to_the_bits_of_its_export(
    place: Place, layout: str, tmp_path: Path
) -> None:
    tensor, pipeline = TRAINERS[layout]
    with trainer(place.run_file, tmp_path, tensor=tensor, pipeline=pipeline) as process:
        async with TrainerClient(process.address, timeout_s=60) as client, clients(place) as rollouts:
            await client.export_model(str(tmp_path / "export"), timeout_s=60)
            exported, started = tensors(tmp_path / "export"), tensors(place.model)
            assert exported.keys() == started.keys()
            assert all(torch.equal(exported[name], tensor) for name, tensor in started.items())
            for names in PAIRINGS:
                for seed, name in enumerate(names):
                    await disturb(place, name, rollouts[name], seed)
                version = next(place.versions)
                publication = await WeightPublisher(client, [rollouts[name] for name in names]).publish(version, verify=True)
                assert publication.committed == tuple(rollouts[name].address for name in names)
                check_all_was_compared(publication, place, names)
                for name in names:
                    assert await answer(rollouts[name], version) == place.replicas[name].at_start, name


def megabytes(process: ServiceProcess) -> float:
    """Resident, of a service and all below it."""
    pids = [process.popen.pid, *descendants(process.popen.pid)]
    return sum(psutil.Process(pid).memory_info().rss for pid in pids) / 1e6


def files(process: ServiceProcess) -> int:
    """Open ones and sockets."""
    return sum(psutil.Process(pid).num_fds() for pid in descendants(process.popen.pid))


async def test_many_updates_and_groups_leak_nothing(place: Place, tmp_path: Path) -> None:
    names = list(place.replicas)
    with trainer(place.run_file, tmp_path, tensor=2) as process:
        watched = {"trainer tp2": process} | {name: replica.process for name, replica in place.replicas.items()}
        sizes: dict[str, list[float]] = {name: [] for name in watched}
        async with TrainerClient(process.address, timeout_s=60) as client, clients(place) as rollouts:
            publisher = WeightPublisher(client, list(rollouts.values()))
            for _ in range(UPDATES):
                publication = await publisher.publish(next(place.versions))
                for name, one in watched.items():
                    sizes[name].append(megabytes(one))
            model_mb = publication.bytes / 1e6
            for name, values in sizes.items():
                slope = float(np.polyfit(range(UPDATES - WARM_UP), values[WARM_UP:], 1)[0])
                print(f"{name}: {values[-1]:.0f} MB, {slope:+.3f} MB per update of {model_mb:.1f} MB")
                assert slope < 0.1 * model_mb, values
            opened = {}
            for number in range(12):
                await WeightPublisher(client, list(rollouts.values())).publish(next(place.versions))
                opened[number] = {name: files(one) for name, one in watched.items()}
            print(f"open files: {opened[2]} after 3 groups, {opened[11]} after 12")
            for name in names:
                assert opened[11][name] <= opened[2][name] + 4
            assert opened[11]["trainer tp2"] <= opened[2]["trainer tp2"] + 4
