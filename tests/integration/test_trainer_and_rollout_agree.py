"""Megatron-Core at any split and vLLM hold the same model: fresh, and after every published update.

One engine per model serves all trainer layouts in turn. Each layout trains the same stored samples, so the module also
proves that loss and gradient norm do not depend on the layout.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import yaml
from training import logprobs_of

from baton.clients import BufferClient, RolloutClient, TrainerClient
from baton.clients.rollout import Prompt, SamplingParams
from baton.samples import Ragged, RewardStatus, Samples
from baton.weights import WeightPublisher
from models import make_model
from processes import ServiceProcess, TrainerProcess

pytestmark = pytest.mark.slow

LAYOUTS = {"tp1": (1, 1, 1), "tp2": (2, 1, 1), "pp2": (1, 2, 1), "tp2-pp2": (2, 2, 1), "dp2": (1, 1, 2)}
"""(TP, PP, DP)"""
FEW = "tp1", "tp2-pp2"
"""Layouts of the models after the first; what a layout does to losses and weights test_splits shows, too."""
STEPS = 2
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}


@dataclass
class Replica:
    """A running engine, and the versions that it has not served yet."""

    process: ServiceProcess
    run_file: Path
    dtype: str
    versions: Iterator[int]
    is_first: bool
    at_start: bytes = b""
    """What it answered by the model that it loaded itself, and the trainers begin with."""


def write_run_file(directory: Path, model: Path, dtype: str) -> Path:
    run = {
        "runtime": {"sample_per_episode": 16, "train_micro_batch_size": 4, "train_global_batch_size": 16},
        "models": {
            "policy": {"model": str(model), "dtype": dtype, "seq_length": 64, "enforce_eager": True},
            "ppo_policy": {"dtype": dtype, "lr": 1e-3},
        },
    }
    path = directory / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


@pytest.fixture(scope="module", params=["tied-float32", "untied-float32", "tied-bfloat16"])
def replica(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    tying, dtype = request.param.split("-")
    directory = tmp_path_factory.mktemp(request.param)
    model = make_model(directory / "model", tied=tying == "tied")
    run_file = write_run_file(directory, model, dtype)
    process = ServiceProcess("rollout", run_file, directory)
    try:
        process.start(timeout_s=800)
        yield Replica(process, run_file, dtype, count(1), is_first=request.param == "tied-float32")
    finally:
        process.kill()


async def greedy_answer(rollout: RolloutClient) -> bytes:
    """Tokens and log-probabilities of one greedy response."""
    greedy = SamplingParams(temperature=0.0, max_new_tokens=12, ignore_eos=True)
    prompt = Prompt("g", token_ids=list(range(5, 45)))
    (samples,) = [group.samples async for group in rollout.generate([prompt], sampling=greedy)]
    return samples.response_ids.values.tobytes() + samples.model_logprobs.values.tobytes()


async def greedy_difference(rollout: RolloutClient, trainer: TrainerClient) -> float:
    """Mean absolute difference of greedy log-probabilities over 16 prompts."""
    rng = np.random.default_rng(1)
    prompts = [Prompt(f"p{i}", token_ids=rng.integers(3, 500, 5 + i).tolist()) for i in range(16)]
    greedy = SamplingParams(temperature=0.0, max_new_tokens=12, ignore_eos=True)
    groups = [group.samples async for group in rollout.generate(prompts, sampling=greedy)]
    samples = Samples.concat(groups)
    scored = await logprobs_of(trainer, samples)
    return float(np.abs(scored.values - samples.model_logprobs.values).mean())


async def prompt_difference(rollout: RolloutClient, trainer: TrainerClient) -> float:
    """The largest one of log-probabilities of 16 prompts' own tokens, all but each first, which nothing predicts."""
    rng = np.random.default_rng(3)
    rows = [rng.integers(3, 500, 2 + 3 * i) for i in range(16)]
    prompts = [Prompt(f"p{i}", token_ids=row.tolist()) for i, row in enumerate(rows)]
    asked, found = SamplingParams(prompt_logprobs=0, max_new_tokens=1), {}
    async for group in rollout.generate(prompts, sampling=asked):
        found |= {name: table.logprobs[:, 0] for name, table in group.prompt_logprobs.items()}
    samples = Samples(
        sample_ids=[f"p{i}" for i in range(16)],
        prompt_ids=Ragged.of([row[:1] for row in rows], np.int32),
        response_ids=Ragged.of([row[1:] for row in rows], np.int32),
    )
    scored = await logprobs_of(trainer, samples)
    return max(float(np.abs(row - found[f"p{i}"]).max()) for i, row in enumerate(scored.rows()))


def training_samples() -> Samples:
    """Four groups of four with unequal lengths; the rollout log-probabilities are near those of a random model."""
    rng = np.random.default_rng(2)
    prompts = [rng.integers(3, 500, 6 + group) for group in range(4) for _ in range(4)]
    responses = [rng.integers(3, 500, 3 + number % 5) for number in range(16)]
    rewards = rng.random(16).astype(np.float32)
    groups = rewards.reshape(4, 4)
    return Samples(
        sample_ids=[f"s{i}" for i in range(16)],
        group_ids=[f"g{i // 4}" for i in range(16)],
        prompt_ids=Ragged.of(prompts, np.int32),
        response_ids=Ragged.of(responses, np.int32),
        rollout_logprobs=Ragged.of([np.full(len(row), -6.2) for row in responses], np.float32),
        rewards=rewards,
        reward_status=np.full(16, RewardStatus.VALUE, np.uint8),
        group_reward_mean=groups.mean(1).repeat(4),
        group_reward_std=groups.std(1).repeat(4),
        policy_version_max=np.ones(16, np.int64),
        temperatures=np.ones(16, np.float32),
    )


async def train(buffer_address: str, trainer: TrainerClient, run_id: str) -> list[dict[str, float]]:
    """Trains STEPS episodes of the same samples; returns each step's metrics."""
    metrics = []
    async with BufferClient(buffer_address) as buffer:
        for episode in range(STEPS):
            await buffer.open_episode(run_id, episode, expected_samples=16, global_batch_size=16, micro_batch_size=4)
            await buffer.put(run_id, episode, training_samples())
            await buffer.close_episode(run_id, episode)
            step = await trainer.train_step(run_id, episode, pass_index=0, step_index=0, buffer_address=buffer_address)
            metrics.append(dict(step.metrics))
    return metrics


@pytest.fixture(scope="module")
def metrics_by_layout(replica: Replica) -> dict[str, list[dict[str, float]]]:
    """Filled by the tests of one model, layout by layout."""
    return {}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("layout", LAYOUTS)
async def test_log_probabilities_agree_fresh_and_after_every_publish(
    layout: str, replica: Replica, buffer: ServiceProcess, run_id: str, tmp_path: Path, metrics_by_layout: dict
) -> None:
    if not replica.is_first and layout not in FEW:
        pytest.skip("the first model covers this layout")
    tensor, pipeline, data = LAYOUTS[layout]
    sizes = {"tensor_model_parallel_size": tensor, "pipeline_model_parallel_size": pipeline, "data_parallel_size": data}
    options = [part for name, size in sizes.items() for part in ("--set", f"models.ppo_policy.{name}={size}")]
    process = TrainerProcess(replica.run_file, tmp_path, tensor * pipeline * data, *options)
    await asyncio.to_thread(process.start, 120)
    try:
        async with RolloutClient(replica.process.address) as rollout, TrainerClient(process.address) as trainer:
            publisher = WeightPublisher(trainer, [rollout])
            replica.at_start = replica.at_start or await greedy_answer(rollout)
            fresh = await publisher.publish(next(replica.versions))
            assert await greedy_answer(rollout) == replica.at_start, "the layout before this one left other weights"
            assert await greedy_difference(rollout, trainer) < TOLERANCE[replica.dtype]
            metrics_by_layout[layout] = await train(buffer.address, trainer, run_id)
            assert await greedy_difference(rollout, trainer) > 5 * TOLERANCE["float32"], "training changed nothing"
            trained = await publisher.publish(next(replica.versions))
            assert await greedy_difference(rollout, trainer) < TOLERANCE[replica.dtype]
            assert trained.weights_digest != fresh.weights_digest
            assert (await rollout.get_status()).weights_digest == trained.weights_digest
            if replica.dtype == "float32":
                assert await prompt_difference(rollout, trainer) < TOLERANCE["float32"]
    finally:
        await asyncio.to_thread(process.stop)


def test_loss_and_gradient_norm_do_not_depend_on_the_layout(replica: Replica, metrics_by_layout: dict) -> None:
    if replica.dtype != "float32":
        pytest.skip("rounding in bfloat16 depends on the split")
    assert set(metrics_by_layout) == set(LAYOUTS if replica.is_first else FEW)
    for name in ("loss", "grad_norm", "mismatch_kl", "entropy", "clip_fraction"):
        expected = [step[name] for step in metrics_by_layout["tp1"]]
        for layout, steps in metrics_by_layout.items():
            assert [step[name] for step in steps] == pytest.approx(expected, rel=1e-5, abs=1e-6), (layout, name)
