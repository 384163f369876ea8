"""What tests of the trainer's roles share: a PPO run with two trainer groups, and samples with all that a step needs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from training import MICRO_BATCH, SIZE, put, training_samples

from baton.api.trainer.v1 import trainer_pb2 as pb
from baton.clients import ScoringClient, TrainerClient
from baton.samples import Ragged, Samples
from processes import TrainerProcess

_FLOAT32 = {role: {"dtype": "float32"} for role in ("ppo_policy", "ppo_value", "reward")}
"""`reference` and `value` have the weights of these, and so their number format."""



def write_roles_file(directory: Path, model: Path, algorithm: dict[str, Any], **roles: dict[str, Any]) -> Path:
    """A run of `model` with further roles; one optimizer step trains all samples."""
    run = {
        "runtime": {
            "sample_per_episode": SIZE, "num_inference_per_prompt": 4, "train_micro_batch_size": MICRO_BATCH,
            "train_global_batch_size": SIZE,
        },
        "models": {
            "policy": {"model": str(model), "dtype": "float32"},
            **{role: _FLOAT32.get(role, {}) | options for role, options in roles.items()},
        },
        "algorithm": algorithm,
        "deadlines": {"buffer_s": 10},
    }  # fmt: skip
    path = directory / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


@contextmanager
def trainer_group(run_file: Path, directory: Path, ranks: int, name: str = "trainer") -> Iterator[TrainerProcess]:
    """One running group of the run file."""
    directory.mkdir(exist_ok=True)
    process = TrainerProcess(run_file, directory, ranks, "--group", name)
    try:
        yield process.start(120)
    finally:
        process.stop()


async def ppo_samples(scoring: ScoringClient, seed: int = 0) -> Samples:
    """What PPO's flow makes: with the reference's log-probabilities and the critic's values."""
    samples = training_samples(seed)
    reference = await scoring.compute_logprobs(samples, role="reference")
    return replace(samples, reference_logprobs=reference, values=await scoring.compute_values(samples))


def reshaped(samples: Samples, responses: list[Any], **columns: Any) -> Samples:
    """The samples with other responses; columns per token are the given constants."""
    lengths = [len(row) for row in responses]
    made = {
        name: Ragged.of([np.full(length, value) for length in lengths], np.float32) for name, value in columns.items()
    }
    return replace(samples, response_ids=Ragged.of(responses, np.int32), **made)


async def step_on(
    client: TrainerClient, buffer_address: str, run_id: str, samples: Samples, episode_id: int = 0
) -> pb.TrainStepResponse:
    """Puts the samples and takes one step on them."""
    await put(buffer_address, run_id, episode_id, samples)
    return await client.train_step(
        run_id, episode_id, pass_index=0, step_index=0, buffer_address=buffer_address, timeout_s=60
    )
