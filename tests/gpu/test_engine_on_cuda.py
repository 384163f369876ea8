"""The trainer's engine on a CUDA device gives transformers' numbers, by the code that runs on CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from models import make_model

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def measure(model: Path, dtype: str) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).parent / "engine_on_cuda.py"), str(model), dtype]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_log_probabilities_and_gradients_equal_those_of_transformers(family: str, tmp_path: Path) -> None:
    measured = measure(make_model(tmp_path / family, family), "float32")
    assert measured["logprob_error_max"] < 1e-4
    assert measured["grad_norm_relative_error"] < 1e-3


def test_bfloat16_stays_within_its_rounding(tmp_path: Path) -> None:
    measured = measure(make_model(tmp_path / "model"), "bfloat16")
    assert measured["logprob_error_mean"] < 0.05
