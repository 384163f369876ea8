"""`baton ckpt`: the command as a process, on checkpoints of real models."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from cli_process import Place
from megatron.core import dist_checkpointing
from safetensors.torch import load_file

from models import make_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A directory with a model, and `imported`, a checkpoint of it."""
    place = Place(tmp_path_factory.mktemp("ckpt"), stand_ins=False)
    make_model(place.directory / "model")
    done = place.baton("ckpt", "import-hf", "model", "imported")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return place


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_inspect_tells_step_models_layout_and_tensors(place: Place) -> None:
    done = place.baton("ckpt", "inspect", "imported")
    assert done.returncode == 0
    assert "imported: step 0, " in done.stdout
    assert "written by tensor 1 x pipeline 1 x data 1" in done.stdout
    count = sum(tensor.numel() for tensor in tensors(place.directory / "model").values())
    assert f"qwen3 of 4 layers, {count:,} parameters in float32, makes logprobs, no optimizer state" in done.stdout
    assert "decoder.layers.mlp.linear_fc1.weight" in done.stdout
    (one,) = json.loads(place.baton("ckpt", "inspect", "imported", "--json").stdout)["checkpoints"]
    assert one["roles"]["ppo_policy"]["parameters"] == count
    assert one["layout"] == {"tensor": 1, "pipeline": 1, "data": 1}


def test_verify_says_that_every_byte_is_right_or_names_the_file_that_is_not(place: Place) -> None:
    runs = place.directory / "run" / "checkpoints"
    for name in ("step-1", "step-2"):
        shutil.copytree(place.directory / "imported", runs / name)
    done = place.baton("ckpt", "verify", "run")
    assert done.returncode == 0
    assert done.stdout == "step-1: every byte is what was written\nstep-2: every byte is what was written\n"
    file = runs / "step-2" / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    done = place.baton("ckpt", "verify", "run")
    assert done.returncode == 1
    assert done.stdout.splitlines()[1] == f"step-2/__0_0.distcp: {len(content)} bytes as were written, but not the same ones"


def test_a_checkpoint_that_is_resharded_twice_and_exported_is_the_model_bit_for_bit(place: Place) -> None:
    for source, target, sizes in (("imported", "wide", {"tensor": 2}), ("wide", "deep", {"pipeline": 2})):
        options = [part for axis, size in sizes.items() for part in (f"--{axis}", str(size))]
        done = place.baton("ckpt", "reshard", source, target, *options, timeout_s=800)
        assert done.returncode == 0, done.stderr
        (one,) = json.loads(place.baton("ckpt", "inspect", target, "--json").stdout)["checkpoints"]
        assert one["layout"] == {"tensor": 1, "pipeline": 1, "data": 1} | sizes
    done = place.baton("ckpt", "export-hf", "deep", "out")
    assert (done.returncode, done.stderr) == (0, "")
    before, after = tensors(place.directory / "model"), tensors(place.directory / "out")
    assert set(after) == set(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert (place.directory / "out" / "tokenizer.json").is_file()


def test_megatrons_own_reader_opens_it(place: Place) -> None:
    found = dist_checkpointing.load_tensors_metadata(str(place.directory / "imported"))
    assert found["decoder.layers.mlp.linear_fc1.weight"].global_shape == (4, 256, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "nowhere"), "error: nowhere is no checkpoint, and holds none"),
        (("verify", "nowhere"), "error: nowhere is no checkpoint, and holds none"),
        (("import-hf", "./nowhere", "x"), "error: model directory ./nowhere does not exist"),
        (("import-hf", "model", "imported"), "imported is there already, and nothing was written"),
        (("export-hf", "model", "x"), "model is not a whole checkpoint"),
        (("reshard", "imported", "x", "--tensor", "0"), "error: --tensor, --pipeline, --data: got 0, 1, 1; each must be"),
        (("reshard", "imported", "imported", "--tensor", "1"), "imported is there already, and nothing was written"),
        (("reshard", "imported", "x", "--pipeline", "3"), "pipeline_model_parallel_size 3 does not divide the model's 4"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_said_in_one_line_and_nothing_is_made(
    place: Place, arguments: tuple[str, ...], message: str
) -> None:
    before = sorted(place.directory.rglob("*"))
    done = place.baton("ckpt", *arguments, timeout_s=800)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(place.directory.rglob("*")) == before
