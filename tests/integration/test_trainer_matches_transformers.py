"""The trainer computes what transformers computes, for every supported kind of model: on one rank, on two, and on two that
divide the sequence, too."""

import itertools
import subprocess
import sys
from pathlib import Path

import megatron_side
import numpy as np
import pytest
import transformers_side
from scored_models import MODELS

from processes import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--master-addr", "127.0.0.1"]


def run(*command: str) -> None:
    answer = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert answer.returncode == 0, answer.stderr[-5000:]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models, transformers' scores of them, and the trainer's, by one rank and by two."""
    directory = tmp_path_factory.mktemp("models")
    run(sys.executable, transformers_side.__file__, str(directory))
    for tensor in ("1", "2"):
        options = ["--nproc-per-node", tensor, "--master-port", str(free_port())]
        run(*TORCHRUN, *options, megatron_side.__file__, str(directory), tensor)
    return directory


@pytest.fixture(params=itertools.product(MODELS, ["tp1", "tp2", "tp2-sequence"]), ids="-".join)
def scores(request: pytest.FixtureRequest, directory: Path) -> tuple[dict, dict]:
    """(transformers', the trainer's) numbers of one model."""
    name, kind = request.param
    files = (f"{name}-transformers.npz", f"{name}-{kind}.npz")
    theirs, ours = (dict(np.load(directory / file)) for file in files)
    return theirs, ours


def test_log_probabilities_entropies_and_gradient_norm_agree(scores: tuple[dict, dict]) -> None:
    theirs, ours = scores
    assert len(theirs["logprobs"]) == 87
    np.testing.assert_allclose(ours["logprobs"], theirs["logprobs"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(ours["entropies"], theirs["entropies"], atol=1e-4, rtol=0)
    assert float(ours["grad_norm"]) == pytest.approx(float(theirs["grad_norm"]), rel=1e-3)


def test_the_gradient_of_every_tensor_agrees(scores: tuple[dict, dict]) -> None:
    """Its error is compared with the tensor's own gradient, which may be a thousandth of another's."""
    theirs, ours = scores
    tensors = {name for name in theirs if name.startswith("gradient of ")}
    assert {name for name in ours if name.startswith("gradient of ")} == tensors and len(tensors) > 15
    for name in tensors:
        error = np.linalg.norm(ours[name] - theirs[name]) / np.linalg.norm(theirs[name])
        assert error < 1e-3, name


def test_sharing_prompts_changes_no_log_probability(scores: tuple[dict, dict]) -> None:
    _, ours = scores
    np.testing.assert_allclose(ours["apart"], ours["logprobs"], atol=1e-5, rtol=0)


def test_the_models_are_not_so_flat_that_any_computation_would_agree(scores: tuple[dict, dict]) -> None:
    theirs, _ = scores
    assert theirs["logprobs"].std() > 0.5
    assert theirs["grad_norm"] > 0.05
