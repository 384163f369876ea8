"""What a model takes of memory in training: less with recompute, for the same gradients, and what the estimate says."""

import re
import subprocess
from pathlib import Path
from typing import Any

import memory_side
import numpy as np
import pytest
from memory_side import CASES, RECOMPUTE
from training import write_run_file

from models import make_model
from processes import TrainerProcess
from ranks import Rank

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FACTOR = 1.2
"""Of which docs/trainer.md speaks."""
Case = tuple[str, str, str]
Found = dict[Case, dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    found = Rank(memory_side.measure, tmp_path_factory.mktemp("memory")).result(240)
    for case, numbers in found.items():
        print(*case, f"peak {numbers['peak'] / 1e6:.1f} MB, estimated {numbers['estimate'].passing / 1e6:.1f}")
    return found


RECOMPUTED = [case for case in CASES if case[2] in RECOMPUTE and case[2] != "none"]


@pytest.mark.parametrize("case", RECOMPUTED, ids="-".join)
def test_recomputing_changes_no_gradient(found: Found, case: Case) -> None:
    kept, again = found[*case[:2], "none"]["gradients"], found[case]["gradients"]
    assert kept.keys() == again.keys()
    for name, gradient in kept.items():
        np.testing.assert_allclose(again[name], gradient, rtol=1e-5, atol=1e-7, err_msg=name)
        assert np.abs(gradient).max() > 1e-5, name


@pytest.mark.parametrize("case", RECOMPUTED, ids="-".join)
def test_the_more_is_recomputed_the_less_memory_is_taken(found: Found, case: Case) -> None:
    most = {"selective": 0.8, "half": 0.75, "full": 0.4}[case[2]]
    assert found[case]["peak"] < most * found[*case[:2], "none"]["peak"]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_estimate_of_a_micro_batch_is_near_the_measured_peak(found: Found, case: Case) -> None:
    numbers = found[case]
    assert 1 / FACTOR < numbers["estimate"].passing / numbers["peak"] < FACTOR


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_weights_gradients_and_optimizer_are_counted_exactly(found: Found, case: Case) -> None:
    numbers, estimate = found[case], found[case]["estimate"]
    assert numbers["parameters"] == numbers["estimated_parameters"]
    assert [estimate.weights, estimate.gradients, estimate.optimizer] == numbers["lasting"]


HUGE = ["runtime.sample_per_episode=100000000", "runtime.train_global_batch_size=100000000"]
"""Options with which one micro-batch is larger than any machine's memory."""


def trainer_of(directory: Path, *options: str) -> TrainerProcess:
    """Two ranks, of which each has a part of the model."""
    run_file = write_run_file(directory, make_model(directory / "model"))
    sizes = ["models.ppo_policy.tensor_model_parallel_size=2", "runtime.train_micro_batch_size=100000000", *HUGE]
    sets = [part for option in [*sizes, *options] for part in ("--set", option)]
    return TrainerProcess(run_file, directory, 2, *sets)


def test_a_micro_batch_larger_than_memory_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    process = trainer_of(tmp_path)
    done = subprocess.run(process.command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    [line] = {line for line in done.stderr.splitlines() if line.startswith("rank ")}
    assert re.search(r"rank \d needs an estimated [\d.]+ GiB of cpu memory, of which [\d.]+ GiB are free", line)
    assert "with micro-batches of up to 25600000000 tokens (runtime.train_micro_batch_size), ppo_policy: weights" in line
    for way in (
        "lower runtime.train_micro_batch_size or models.policy.seq_length: some", "to full:", "tensor_model_parallel_size",
        "set runtime.memory_preflight to warn",
    ):  # fmt: skip
        assert way in line


def test_a_run_that_knows_better_is_warned_and_starts(tmp_path: Path) -> None:
    process = trainer_of(tmp_path, "runtime.memory_preflight=warn")
    try:
        process.start(120)
        assert "needs an estimated" in process.output()
    finally:
        process.stop()
