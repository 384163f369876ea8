"""Our losses and their gradients are those of TRL's own trainers on the same tensors."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from baton.config.algorithm import DpoConfig
from baton.config.policy_gradient import GrpoConfig, GspoConfig
from baton.config.ppo import PpoConfig
from models import make_model
from services.trainer.algorithms.dpo import PreferenceBatch, dpo_loss
from services.trainer.algorithms.grpo import grpo_loss
from services.trainer.algorithms.gspo import gspo_loss
from services.trainer.algorithms.losses import LossOutput, TokenBatch
from services.trainer.algorithms.ppo import ppo_loss

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a fresh clone installs TRL first
ROOT = Path(__file__).resolve().parents[2]
LENGTHS, CONSTANT = [6, 2, 4, 1], 7

WHOLE = {"off_policy": {"importance_cap": None}}
STEP = {"off_policy": {"importance_cap": 2.0, "old_policy": "step"}}
GRPO = {"loss_type": "grpo", "advantages": "advantages_S", "beta": 0.0}
DUAL = {"epsilon_high": 0.5, "delta": 1.8}
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    # name: (TRL's trainer and its options, our configuration)
    "PPO-clip": (
        {"trainer": "grpo", **GRPO, "loss_type": "bnpo", "advantages": "advantages"}, PpoConfig(name="ppo", **WHOLE),
    ),
    "GRPO": ({"trainer": "grpo", **GRPO}, GrpoConfig(loss_normalization="sequence", **WHOLE)),
    "GRPO, KL in the loss": (
        {"trainer": "grpo", **GRPO, "beta": 0.1, "use_bias_correction_kl": False},
        GrpoConfig(loss_normalization="sequence", kl_coef=0.1, **WHOLE),
    ),
    "GRPO, KL weighted by the ratio": (
        {"trainer": "grpo", **GRPO, "beta": 0.1},
        GrpoConfig(loss_normalization="sequence", kl_coef=0.1, kl_weighting=True, **WHOLE),
    ),
    "DAPO's clip-higher and mean over tokens, dual clip": (
        {"trainer": "grpo", **GRPO, "loss_type": "bnpo", **DUAL}, GrpoConfig(clip_ratio_high=0.5, dual_clip=1.8, **WHOLE),
    ),
    "Dr. GRPO": (
        {"trainer": "grpo", **GRPO, "loss_type": "dr_grpo"},
        GrpoConfig(loss_normalization="constant", normalization_length=CONSTANT, **WHOLE),
    ),
    "GSPO": (
        {"trainer": "grpo", **GRPO, "importance_sampling_level": "sequence", "epsilon": 0.3},
        GspoConfig(name="gspo", clip_ratio_low=0.3, clip_ratio_high=0.3, **WHOLE),
    ),
    "truncated importance sampling": (
        {"trainer": "grpo", **GRPO, "correction": 2.0, "old": False}, GrpoConfig(loss_normalization="sequence", **STEP),
    ),
    "DPO": ({"trainer": "dpo", "beta": 0.3, "loss_type": ["sigmoid"]}, DpoConfig(name="dpo", beta=0.3)),
    "DPO by length": (
        {"trainer": "dpo", "beta": 0.3, "loss_type": ["sigmoid_norm"]}, DpoConfig(name="dpo", beta=0.3, length_average=True),
    ),
    "IPO": ({"trainer": "dpo", "beta": 0.3, "loss_type": ["ipo"]}, DpoConfig(name="dpo", beta=0.3, loss="ipo")),
}  # fmt: skip


LOSSES: dict[str, Callable[..., LossOutput]] = {"grpo": grpo_loss, "gspo": gspo_loss, "ppo": ppo_loss}


def make_inputs() -> dict[str, np.ndarray]:
    """Four responses, padded to [4, 6], in float64."""
    rng = np.random.default_rng(3)
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    old = rng.uniform(-3, -0.5, mask.shape)
    inputs = {
        "policy": old + rng.normal(0, 0.5, mask.shape), "old": old, "reference": old + rng.normal(0, 0.5, mask.shape),
        "advantages": rng.normal(size=mask.shape), "advantages_S": rng.normal(size=len(LENGTHS)),
    }  # fmt: skip
    return inputs | {"mask": mask.astype(np.float64)}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What TRL says of every case: one process, for it takes seconds to load."""
    directory = tmp_path_factory.mktemp("trl")
    install = [sys.executable, str(ROOT / "benchmarks/trl_site.py")]
    site = subprocess.run(install, capture_output=True, text=True, timeout=900)
    assert site.returncode == 0, site.stderr[-3000:]
    make_model(directory / "model", layers=2)
    np.savez(directory / "inputs.npz", **make_inputs())
    cases = {}
    for name, (options, _) in CASES.items():
        cases[name] = {"trainer": options["trainer"], "options": {k: v for k, v in options.items() if k != "trainer"}}
    (directory / "cases.json").write_text(json.dumps(cases))
    environment = os.environ | {"PYTHONPATH": site.stdout.strip(), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(Path(__file__).with_name("trl_side.py")), str(directory)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert answer.returncode == 0, answer.stderr[-5000:]
    return dict(np.load(directory / "answers.npz"))


def ours(config: Any, per_token_advantages: bool) -> tuple[float, np.ndarray]:
    """(loss, gradient [4, 6]) of the same tensors, packed without padding."""
    inputs = {name: torch.from_numpy(array) for name, array in make_inputs().items()}
    inside = inputs["mask"] > 0
    policy = inputs["policy"].requires_grad_()
    sample_of = inside.nonzero()[:, 0]
    old, reference = inputs["old"][inside], inputs["reference"][inside]
    mask = torch.ones(len(old), dtype=torch.float64)
    if isinstance(config, DpoConfig):
        batch = PreferenceBatch(reference, mask, sample_of, torch.full((2,), 0.5, dtype=torch.float64))
        output = dpo_loss(policy[inside], batch, config)
    else:
        advantages = inputs["advantages"][inside] if per_token_advantages else inputs["advantages_S"][sample_of]
        kind, total = config.loss_normalization, float(len(LENGTHS))
        if kind != "sequence":
            kind, total = "token", float(len(LENGTHS) * CONSTANT if kind == "constant" else sum(LENGTHS))
        lengths = torch.tensor(LENGTHS, dtype=torch.float64)
        weights = mask / total if kind == "token" else mask / (lengths[sample_of] * total)
        batch = TokenBatch(old, old, advantages, weights, sample_of, reference)
        output = LOSSES[config.name](policy[inside], torch.zeros_like(old), batch, config)
    output.loss.backward()
    return output.loss.item(), policy.grad.numpy()


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_trls(name: str, theirs: dict[str, np.ndarray]) -> None:
    options, config = CASES[name]
    loss, gradient = ours(config, per_token_advantages=options.get("advantages") == "advantages")
    assert abs(loss) > 1e-3 and np.abs(gradient).max() > 1e-3
    assert loss == pytest.approx(theirs[f"{name}/loss"].item(), abs=1e-6)
    np.testing.assert_allclose(gradient, theirs[f"{name}/gradient"], atol=1e-6)
