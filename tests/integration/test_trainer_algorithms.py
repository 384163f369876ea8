"""A step of each algorithm on the real trainer: its loss is the definition's, whatever way the batch is split."""

from pathlib import Path

import numpy as np
import pytest
from training import SIZE, logprobs_of, step, trainer, training_samples, write_run_file

from baton.clients import TrainerClient
from baton.samples import Ragged, Samples
from models import make_model
from processes import ServiceProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLIP = 0.2
LAYOUTS = {"one rank": {}, "TP 2 x DP 2": {"tensor": 2, "data": 2}}


def gspo_loss(samples: Samples, logprobs: Ragged) -> float:
    """Mean over responses of the clipped loss on the geometric mean of each one's ratios, in float64."""
    losses = []
    for row, (new, old) in enumerate(zip(logprobs.rows(), samples.rollout_logprobs.rows(), strict=True)):
        ratio = np.exp(np.mean(new.astype(np.float64) - old))
        deviation = samples.group_reward_std[row] + 1e-6
        advantage = (samples.rewards[row] - samples.group_reward_mean[row]) / deviation
        losses.append(max(-advantage * ratio, -advantage * np.clip(ratio, 1 - CLIP, 1 + CLIP)))
    return float(np.mean(losses))


async def test_a_gspo_step_has_the_loss_of_its_definition_in_every_layout(
    buffer: ServiceProcess, run_id: str, tmp_path: Path
) -> None:
    algorithm = {"name": "gspo", "clip_ratio_low": CLIP, "clip_ratio_high": CLIP}
    run_file = write_run_file(tmp_path, make_model(tmp_path / "model", layers=2), algorithm=algorithm)
    samples, norms = training_samples(), []
    for number, layout in enumerate(LAYOUTS.values()):
        with trainer(run_file, tmp_path, **layout) as process:
            async with TrainerClient(process.address, timeout_s=60) as client:
                logprobs = await logprobs_of(client, samples)
                answer = await step(client, buffer.address, f"{run_id}-{number}", samples)
        assert answer.samples == SIZE
        assert answer.metrics["loss"] == pytest.approx(gspo_loss(samples, logprobs), abs=1e-5)
        norms.append(answer.metrics["grad_norm"])
    assert norms[0] > 1e-3
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
