"""A Hugging Face model that is imported into a checkpoint and exported again keeps every bit; what cannot be is refused."""

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from baton.checkpoint_files import faults, read_marker
from baton.errors import ConfigError, InvalidRequestError, NotFoundError
from markers import write_marker
from models import make_model
from services.trainer.megatron import hf
from services.trainer.megatron.hf_checkpoint import export_hf_directory, import_hf


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def as_bfloat16(model: Path) -> Path:
    save_file({name: tensor.bfloat16() for name, tensor in tensors(model).items()}, model / "model.safetensors")
    return model


@pytest.mark.parametrize(
    ("family", "tied", "labels", "dtype"),
    [
        ("llama", True, 0, "float32"), ("llama", False, 0, "bfloat16"), ("qwen2", True, 0, "bfloat16"),
        ("qwen2", False, 1, "float32"), ("qwen3", True, 0, "bfloat16"), ("qwen3", False, 0, "float32"),
    ],
)  # fmt: skip
def test_a_round_trip_keeps_every_bit_of_every_family_in_its_number_format(
    family: str, tied: bool, labels: int, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf, "SHARD_BYTES", 50_000)  # so that there are several files
    source = make_model(tmp_path / "source", family, tied=tied, labels=labels)
    if dtype == "bfloat16":
        as_bfloat16(source)
    size = import_hf(source, tmp_path / "checkpoint", "reward" if labels else "ppo_policy")
    assert list(faults(tmp_path / "checkpoint")) == []
    known = next(iter(read_marker(tmp_path / "checkpoint")["roles"].values()))
    assert (known["dtype"], known["head"], known["updates"]) == (dtype, "scores" if labels else "logprobs", None)
    written = export_hf_directory(tmp_path / "checkpoint", tmp_path / "out")

    before, after = tensors(source), tensors(tmp_path / "out")
    assert set(after) == set(before)
    for name, tensor in before.items():
        assert after[name].dtype is tensor.dtype
        assert torch.equal(after[name].view(torch.uint8), tensor.view(torch.uint8)), name
    assert size >= written == sum(tensor.nbytes for tensor in before.values())
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == dtype
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_nothing_is_written_over_and_a_model_that_is_not_whole_leaves_nothing(tmp_path: Path) -> None:
    source, target = make_model(tmp_path / "source"), tmp_path / "checkpoint"
    incomplete = tensors(source)
    del incomplete["model.layers.3.mlp.up_proj.weight"]
    target.mkdir()
    with pytest.raises(InvalidRequestError, match=f"{target} is there already, and nothing was written"):
        import_hf(source, target, "ppo_policy")
    target.rmdir()
    save_file(incomplete, source / "model.safetensors")
    with pytest.raises(ConfigError, match=r"lacks the tensor model\.layers\.3\.mlp\.up_proj\.weight"):
        import_hf(source, target, "ppo_policy")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_export_of_what_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=f"{tmp_path} is not a whole checkpoint"):
        export_hf_directory(tmp_path, tmp_path / "out")
    import_hf(make_model(tmp_path / "source"), tmp_path / "checkpoint", "ppo_policy")
    with pytest.raises(InvalidRequestError, match="is a checkpoint of ppo_policy, and not of reward"):
        export_hf_directory(tmp_path / "checkpoint", tmp_path / "out", "reward")
    assert not (tmp_path / "out").exists()


def test_a_disk_that_takes_no_more_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    """Files may not grow beyond what the weights take: the same error path as a full disk's."""
    import_hf(make_model(tmp_path / "source"), tmp_path / "checkpoint", "ppo_policy")
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
    try:
        with pytest.raises(InvalidRequestError, match=f"cannot write {tmp_path}/out: .*File too large.*nothing of it"):
            export_hf_directory(tmp_path / "checkpoint", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "source"]


def test_a_checkpoint_of_adapters_is_no_model_to_export(tmp_path: Path) -> None:
    import_hf(make_model(tmp_path / "source"), tmp_path / "checkpoint", "ppo_policy")
    said = read_marker(tmp_path / "checkpoint")
    said["roles"]["ppo_policy"]["lora"] = {"checkpoint": "adapter"}
    write_marker(tmp_path / "checkpoint", said)
    with pytest.raises(InvalidRequestError, match=r"holds the adapters of ppo_policy alone.*take the run's export"):
        export_hf_directory(tmp_path / "checkpoint", tmp_path / "out")
    assert not (tmp_path / "out").exists()
