"""However a global batch is split over micro-batches, rows and ranks, training computes the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import splits_side
from safetensors.numpy import load_file
from splits import CASES, STEPS, baseline

from models import make_model
from processes import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ALL = [name for layouts in CASES.values() for cases in layouts.values() for name in cases if baseline(name) != name]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps and weights of every case."""
    directory = tmp_path_factory.mktemp("splits")
    model = make_model(directory / "model", "qwen3")
    for ranks in CASES:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--master-addr", "127.0.0.1", "--master-port", str(free_port()),
            "--nproc-per-node", str(ranks), splits_side.__file__, str(model), str(directory),
        ]  # fmt: skip
        paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # the tests' own modules, too
        done = subprocess.run(command, capture_output=True, text=True, timeout=800, env=paths)
        assert done.returncode == 0, done.stderr[-5000:]
    return directory


def numbers(directory: Path, name: str, field: str) -> np.ndarray:
    return np.array([step[field] for step in json.loads((directory / f"{name}.json").read_text())])


def weights(directory: Path, name: str) -> dict[str, np.ndarray]:
    return {key: value for file in (directory / name).glob("*.safetensors") for key, value in load_file(file).items()}


@pytest.mark.parametrize("name", ALL)
def test_every_split_gives_the_same_losses_gradient_norms_and_weights(trained: Path, name: str) -> None:
    for field in ("loss", "grad_norm"):
        mine, exact = (numbers(trained, case, field) for case in (name, baseline(name)))
        np.testing.assert_allclose(mine, exact, atol=1e-5, rtol=1e-5, err_msg=field)
    mine, exact = weights(trained, name), weights(trained, baseline(name))
    assert mine.keys() == exact.keys()
    for key, value in exact.items():
        np.testing.assert_allclose(mine[key], value, atol=1e-5, rtol=0, err_msg=key)


def test_the_steps_and_the_baselines_differ_by_far_more(trained: Path) -> None:
    assert len(set(numbers(trained, "whole", "loss").round(4))) == STEPS
    whole = weights(trained, "whole")
    for other in ("tail 12", "tail wrapped", "lora"):
        theirs = weights(trained, other)
        assert max(np.abs(theirs[key] - value).max() for key, value in whole.items()) > 1e-3
