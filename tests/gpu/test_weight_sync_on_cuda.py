"""Weights between processes on GPUs arrive bit for bit, and both devices compute the same digest of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_weights_come_through_the_memory_of_one_gpu_and_by_nccl_bit_for_bit() -> None:
    command = [sys.executable, str(Path(__file__).parent / "weight_sync_on_cuda.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    cases = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [case["transport"] for case in cases][:2] == ["ipc", "ipc"]
    assert len(cases) == (4 if torch.cuda.device_count() > 1 else 2)
    for case in cases:
        for update in case["updates"]:
            assert update["digest"] == update["sent"] == update["held"] == update["expected"], case["transport"]
        assert case["updates"][2]["verified_bytes"] == case["updates"][2]["bytes"]


def test_a_member_that_dies_before_nccl_has_connected_it_does_not_hold_the_other() -> None:
    command = [sys.executable, str(Path(__file__).parent / "dying_members_on_cuda.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    *ends, last = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if "end" in last:
        ends.append(last)
    else:
        assert last["again"]
    assert len(ends) == 4
    for end in ends:
        assert end["end"] in end["told"]
        assert end["seconds"] < 8.0
