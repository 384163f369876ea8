"""Packed attention by the flash kernels gives masked attention's outputs and gradients, up to bfloat16's rounding."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_flash_kernels_over_packed_rows_equal_masked_attention() -> None:
    command = [sys.executable, str(Path(__file__).parent / "varlen_on_cuda.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.splitlines()[-1])
    assert set(errors) == {"plain", "shared", "both"}
    assert max(errors.values()) < 0.02
