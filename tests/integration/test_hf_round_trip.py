"""A model that goes through the trainer and out again, twice and at another split each time, keeps every bit."""

import asyncio
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training import trainer, write_run_file

from baton.clients import TrainerClient
from models import make_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a Hugging Face directory."""
    return {name: tensor for file in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def export(model: Path, directory: Path, dtype: str, target: Path, **layout: int) -> int:
    """Starts a trainer on `model` and lets it export into `target`; returns the bytes that it says it wrote."""
    directory.mkdir()
    with trainer(write_run_file(directory, model, dtype), directory, **layout) as process:

        async def call() -> int:
            async with TrainerClient(process.address) as client:
                return await client.export_model(str(target), timeout_s=60)

        return asyncio.run(call())


@dataclass(frozen=True)
class RoundTrip:
    """The model that went in, and what came out of the first and the second trainer."""

    dtype: str
    source: Path
    first: Path
    second: Path
    bytes: list[int]


ROUTES = {
    "float32": ("qwen3", True, {"tensor": 2}, {"pipeline": 2}),
    "bfloat16": ("qwen2", False, {"pipeline": 2}, {"tensor": 2, "pipeline": 2}),
}
"""Number format -> (family, tied embeddings, the first trainer's layout, the second's)."""


@pytest.fixture(scope="module", params=ROUTES)
def trip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RoundTrip:
    family, tied, *layouts = ROUTES[request.param]
    root = tmp_path_factory.mktemp(request.param)
    first, second = root / "first", root / "second"
    source = make_model(root / "source", family, tied=tied)
    leave_a_killed_export_behind(first)
    sizes = [export(source, root / "1", request.param, first, **layouts[0])]
    shutil.copytree(first, second)  # an older export, to be replaced
    (second / "of-the-older-export").touch()
    sizes.append(export(first, root / "2", request.param, second, **layouts[1]))
    return RoundTrip(request.param, source, first, second, sizes)


def leave_a_killed_export_behind(target: Path) -> None:
    """A file of a stage that the next export, of another layout, does not write itself."""
    partial = target.with_name(target.name + ".partial")
    partial.mkdir()
    save_file({"model.norm.weight": torch.full((64,), 7.0)}, partial / "model-stage07-00000.safetensors")


def test_the_first_export_is_the_source_in_the_trainers_number_format(trip: RoundTrip) -> None:
    source, first = tensors(trip.source), tensors(trip.first)
    assert set(first) == set(source)
    for name, tensor in source.items():
        assert torch.equal(first[name], tensor.to(getattr(torch, trip.dtype))), name


def test_a_second_export_at_another_split_is_the_first_bit_for_bit(trip: RoundTrip) -> None:
    first, second = tensors(trip.first), tensors(trip.second)
    assert set(second) == set(first)
    for name, tensor in first.items():
        assert second[name].dtype == tensor.dtype
        assert torch.equal(second[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_the_index_names_the_file_of_every_tensor_and_the_answer_its_bytes(trip: RoundTrip) -> None:
    for directory, told in zip((trip.first, trip.second), trip.bytes, strict=True):
        index = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
        held = {name: file.name for file in directory.glob("*.safetensors") for name in load_file(file)}
        assert index == held
        assert told == sum(tensor.nbytes for tensor in tensors(directory).values())


def test_neither_a_killed_export_nor_an_older_one_leaves_anything_behind(trip: RoundTrip) -> None:
    assert not (trip.second / "of-the-older-export").exists()
    assert not list(trip.first.parent.glob("*.partial"))
    assert not (trip.first / "model-stage07-00000.safetensors").exists()


def test_an_export_loads_in_transformers_with_its_tokenizer(trip: RoundTrip) -> None:
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    model, info = AutoModelForCausalLM.from_pretrained(trip.second, dtype="auto", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    source = AutoModelForCausalLM.from_pretrained(trip.source, dtype=getattr(torch, trip.dtype))
    assert model.dtype is source.dtype, "the config must say what the weights are"
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(model(ids).logits, source(ids).logits)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(trip.second)
    assert tokenizer("w1 w2")["input_ids"] == [4, 5]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "w3"}], tokenize=False) == "w3 "
