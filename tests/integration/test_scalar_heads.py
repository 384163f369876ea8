"""Values and scores are what transformers' sequence classifiers compute, for every family and split."""

import subprocess
import sys
from pathlib import Path

import classifiers_megatron_side
import classifiers_transformers_side
import numpy as np
import pytest
from scored_models import CLASSIFIERS

from processes import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--master-addr", "127.0.0.1"]


def run(*command: str) -> None:
    answer = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert answer.returncode == 0, answer.stderr[-5000:]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifiers, and transformers' numbers."""
    directory = tmp_path_factory.mktemp("classifiers")
    run(sys.executable, classifiers_transformers_side.__file__, str(directory))
    return directory


@pytest.fixture(scope="module", params=["1 1", "2 1", "1 2", "2 1 sequence"], ids=["tp1", "tp2", "pp2", "tp2-sequence"])
def split(request: pytest.FixtureRequest, directory: Path) -> str:
    """The layout that the trainer's numbers in `directory` are from."""
    tensor, pipeline, *kind = request.param.split()
    options = ["--nproc-per-node", str(int(tensor) * int(pipeline)), "--master-port", str(free_port())]
    run(*TORCHRUN, *options, classifiers_megatron_side.__file__, str(directory), tensor, pipeline, *kind)
    return f"tp{tensor}pp{pipeline}{''.join(kind)}"


@pytest.mark.parametrize("head", ["values", "scores"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_outputs_and_gradient_norm_agree(name: str, head: str, directory: Path, split: str) -> None:
    theirs, ours = (dict(np.load(directory / f"{name}-{side}.npz")) for side in ("transformers", split))
    assert len(theirs[head]) == {"values": 87, "scores": 10}[head]
    assert theirs[head].std() > 0.1, "so flat that any computation would agree"
    np.testing.assert_allclose(ours[head], theirs[head], atol=1e-4, rtol=0)
    np.testing.assert_allclose(ours[f"{head}_apart"], ours[head], atol=1e-5, rtol=0)
    assert float(ours[f"{head}_norm"]) == pytest.approx(float(theirs[f"{head}_norm"]), rel=1e-3)
