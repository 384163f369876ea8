"""What trainer tests share: a run file, sixteen samples to train on, and trainers of any layout."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from baton.api.trainer.v1 import trainer_pb2 as pb
from baton.channel import ServiceClient
from baton.clients import BufferClient, ScoringClient, TrainerClient
from baton.samples import Ragged, RewardStatus, Samples
from processes import TrainerProcess

SIZE = 16
MICRO_BATCH = 4


def write_run_file(
    directory: Path, model: Path, dtype: str = "float32", tail: str = "wrap", algorithm: dict[str, Any] | None = None
) -> Path:
    """One optimizer step trains all samples."""
    run = {
        "runtime": {
            "sample_per_episode": SIZE,
            "num_inference_per_prompt": 4,
            "train_micro_batch_size": MICRO_BATCH,
            "train_global_batch_size": SIZE,
            "tail": tail,
        },
        "models": {"policy": {"model": str(model), "dtype": dtype}, "ppo_policy": {"dtype": dtype, "lr": 1e-3}},
        "algorithm": algorithm or {"name": "grpo"},
        "deadlines": {"buffer_s": 10},
    }
    path = directory / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


@contextmanager
def trainer(
    run_file: Path, directory: Path, *, tensor: int = 1, pipeline: int = 1, data: int = 1
) -> Iterator[TrainerProcess]:
    """A running trainer of that layout."""
    sizes = {"tensor_model_parallel_size": tensor, "pipeline_model_parallel_size": pipeline, "data_parallel_size": data}
    options = [part for name, size in sizes.items() for part in ("--set", f"models.ppo_policy.{name}={size}")]
    process = TrainerProcess(run_file, directory, tensor * pipeline * data, *options)
    try:
        yield process.start(120)
    finally:
        process.stop()


def ranks_of(process: TrainerProcess) -> list[int]:
    """Process ids of torchrun's children."""
    return [int(pid) for pid in Path(f"/proc/{process.popen.pid}/task/{process.popen.pid}/children").read_text().split()]


def training_samples(seed: int = 0) -> Samples:
    """Four groups of four with unequal lengths, sampled from weights "good" as version 1."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(3, 500, 6 + group) for group in range(4) for _ in range(4)]
    responses = [rng.integers(3, 500, 3 + number % 5) for number in range(SIZE)]
    rewards = rng.random(SIZE).astype(np.float32)
    groups = rewards.reshape(4, 4)
    return Samples(
        sample_ids=[f"s{i}" for i in range(SIZE)],
        group_ids=[f"g{i // 4}" for i in range(SIZE)],
        prompt_ids=Ragged.of(prompts, np.int32),
        response_ids=Ragged.of(responses, np.int32),
        rollout_logprobs=Ragged.of([np.full(len(row), -6.2) for row in responses], np.float32),
        rewards=rewards,
        reward_status=np.full(SIZE, RewardStatus.VALUE, np.uint8),
        group_reward_mean=groups.mean(1).repeat(4),
        group_reward_std=groups.std(1).repeat(4),
        policy_version_max=np.ones(SIZE, np.int64),
        weights_digests=["good"] * SIZE,
        temperatures=np.ones(SIZE, np.float32),
    )


def without(samples: Samples, *columns: str) -> Samples:
    """The samples without some columns."""
    return replace(samples, **dict.fromkeys(columns))


async def logprobs_of(client: ServiceClient, samples: Samples, *, role: str = "", timeout_s: float = 60.0) -> Ragged:
    """Log-probabilities by the trainer that `client` talks to."""
    async with ScoringClient(client.address) as scoring:
        return await scoring.compute_logprobs(samples, role=role, timeout_s=timeout_s)


async def put(buffer_address: str, run_id: str, episode_id: int, samples: Samples) -> None:
    """Stores the samples as a whole episode, which one step trains."""
    async with BufferClient(buffer_address) as buffer:
        await buffer.open_episode(
            run_id, episode_id, expected_samples=len(samples), global_batch_size=SIZE, micro_batch_size=MICRO_BATCH
        )
        await buffer.put(run_id, episode_id, samples)
        await buffer.close_episode(run_id, episode_id)


async def step(
    client: TrainerClient, buffer_address: str, run_id: str, samples: Samples, expected: dict[int, str] | None = None
) -> pb.TrainStepResponse:
    """Puts the samples and takes one step on them, or raises within seconds what any rank has against it."""
    await put(buffer_address, run_id, 0, samples)
    return await client.train_step(
        run_id, 0, pass_index=0, step_index=0, buffer_address=buffer_address, expected_digests=expected, timeout_s=60
    )


async def train(client: TrainerClient, buffer_address: str, run_id: str, episode_id: int) -> pb.TrainStepResponse:
    """One step on samples that depend on the episode alone."""
    await put(buffer_address, run_id, episode_id, training_samples(episode_id))
    return await client.train_step(
        run_id, episode_id, pass_index=0, step_index=0, buffer_address=buffer_address, timeout_s=60
    )
