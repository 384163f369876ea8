"""The trainer's adapters are PEFT's: the same forward pass, gradients and training under every layout, out of PEFT's files
and into them."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import lora_peft_side
import lora_trainer_side
import numpy as np
import pytest
from lora_cases import CASES, COMPARED
from safetensors.numpy import load_file

from processes import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
KINDS = [kind for layouts in lora_trainer_side.LAYOUTS.values() for kind in layouts]


def run(*command: str) -> None:
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    answer = subprocess.run(command, capture_output=True, text=True, timeout=800, env=paths)
    assert answer.returncode == 0, answer.stderr[-5000:]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What PEFT computed, what the trainer did under each layout, and what PEFT reads of that."""
    directory = tmp_path_factory.mktemp("lora")
    run(sys.executable, lora_peft_side.__file__, str(directory))
    for ranks in lora_trainer_side.LAYOUTS:
        port = str(free_port())
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--master-addr", "127.0.0.1", "--master-port", port]
        run(*torchrun, "--nproc-per-node", str(ranks), lora_trainer_side.__file__, str(directory))
    run(sys.executable, lora_peft_side.__file__, str(directory), *KINDS)
    return directory


def of(directory: Path, name: str, kind: str) -> dict[str, np.ndarray]:
    return dict(np.load(directory / name / f"{kind}.npz"))


def near(ours: np.ndarray, theirs: np.ndarray, limit: float, what: str = "") -> None:
    """By the largest number, since adapters' numbers are of very different sizes."""
    error = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-6)
    assert error < limit, f"{what} {error}"


@pytest.mark.parametrize(("name", "kind"), [*itertools.product(CASES, KINDS)])
def test_an_adapter_out_of_pefts_file_gives_pefts_log_probabilities(directory: Path, name: str, kind: str) -> None:
    ours, theirs = of(directory, name, kind), of(directory, name, "peft")
    assert len(ours["logprobs"]) == 87
    near(ours["logprobs"], theirs["logprobs"], 1e-5)


@pytest.mark.parametrize(("name", "kind"), [*itertools.product(CASES, KINDS)])
def test_every_factor_has_pefts_gradient(directory: Path, name: str, kind: str) -> None:
    ours, theirs = of(directory, name, kind), of(directory, name, "peft")
    factors = [key for key in theirs if key.startswith("gradient of ")]
    assert len(factors) >= 8
    for factor in factors:
        near(ours[factor], theirs[factor], 1e-4, factor)
    if name in COMPARED:
        assert {key for key in ours if key.startswith("gradient of ")} == set(factors)
        assert float(ours["grad_norm"]) == pytest.approx(float(theirs["grad_norm"]), rel=1e-4)


@pytest.mark.parametrize(("name", "kind"), [*itertools.product(COMPARED, KINDS)])
def test_three_steps_of_adam_give_pefts_factors(directory: Path, name: str, kind: str) -> None:
    ours, theirs, fresh = of(directory, name, kind), of(directory, name, "peft"), load_file(
        directory / name / "peft" / "adapter_model.safetensors"
    )  # fmt: skip
    for key in (key for key in theirs if key.startswith("trained ")):
        near(ours[key], theirs[key], 1e-4, key)
        moved = np.abs(theirs[key] - fresh["base_model.model." + key.removeprefix("trained ")]).max()
        assert moved > 1e-3, f"{key} was not trained, so that nothing is compared"
    near(ours["trained"], theirs["trained"], 1e-4)


@pytest.mark.parametrize(("name", "kind"), [*itertools.product(CASES, KINDS)])
def test_peft_loads_an_export_and_gives_the_trainers_log_probabilities(directory: Path, name: str, kind: str) -> None:
    read, ours = of(directory, name, f"{kind}-read"), of(directory, name, kind)
    near(read["adapter"], ours["trained"], 1e-5)
    assert np.abs(ours["trained"] - ours["logprobs"]).max() > 0.01


@pytest.mark.parametrize(("name", "kind"), [*itertools.product(CASES, KINDS)])
def test_a_merged_export_is_the_model_with_its_adapter_on(directory: Path, name: str, kind: str) -> None:
    read, ours = of(directory, name, f"{kind}-read"), of(directory, name, kind)
    near(read["merged"], ours["trained"], 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tied_head_keeps_its_weights_when_the_embedding_has_an_adapter(directory: Path, kind: str) -> None:
    case = directory / "tied, all kinds"
    base = load_file(case / "model" / "model.safetensors")["model.embed_tokens.weight"]
    files = sorted((case / f"{kind}-merged").glob("*.safetensors"))
    merged = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert np.array_equal(merged["lm_head.weight"], base)
    assert np.abs(merged["model.embed_tokens.weight"] - base).max() > 1e-3
    assert json.loads((case / f"{kind}-merged" / "config.json").read_text())["tie_word_embeddings"] is False
