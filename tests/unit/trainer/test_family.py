"""config.json -> ModelShape: old and new spellings mean the same, and what would make another model is refused by field."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from baton.errors import ConfigError
from services.trainer.megatron.family import ModelShape

LLAMA3_ROPE = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip


def config(family: str = "llama", **changes: Any) -> dict[str, Any]:
    """A whole config.json; a change to ... leaves the field out."""
    raw = {
        "model_type": family, "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2,
        "intermediate_size": 96, "vocab_size": 101, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "head_dim": 16,
    }  # fmt: skip
    return {name: value for name, value in (raw | changes).items() if value is not ...}


def read(directory: Path, raw: dict[str, Any]) -> ModelShape:
    (directory / "config.json").write_text(json.dumps(raw))
    return ModelShape.read(directory)


def test_sizes_are_the_files(tmp_path: Path) -> None:
    assert read(tmp_path, config()) == ModelShape(
        family="llama", num_layers=4, hidden_size=64, num_heads=8, num_kv_heads=2, head_dim=16, ffn_size=96, vocab_size=101,
        max_positions=256, norm_eps=1e-5, rope_base=10000.0, rope_scaling=None, tied_embeddings=False, qkv_bias=False,
        qk_norm=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("family", "bias", "norm"), [("llama", False, False), ("qwen2", True, False), ("qwen3", False, True)]
)
def test_the_family_says_which_biases_and_norms_there_are(family: str, bias: bool, norm: bool, tmp_path: Path) -> None:
    shape = read(tmp_path, config(family))
    assert (shape.qkv_bias, shape.qk_norm) == (bias, norm)


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {"rope_theta": 5e5, "rope_scaling": None},
    ],
    ids=["old", "new", "old with empty scaling"],
)
def test_the_rotary_base_is_found_in_either_spelling(spelling: dict[str, Any], tmp_path: Path) -> None:
    shape = read(tmp_path, config(**spelling))
    assert (shape.rope_base, shape.rope_scaling) == (5e5, None)


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3_ROPE}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3_ROPE}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3_ROPE}},
        {"rope_theta": 500000, "rope_scaling": {"rope_type": "llama3", **LLAMA3_ROPE, "factor": 8}},
    ],
    ids=["old", "oldest", "new", "whole numbers"],
)
def test_llama_3s_scaling_is_the_same_four_numbers_in_every_spelling(spelling: dict[str, Any], tmp_path: Path) -> None:
    """Nothing else, so that no spelling passes for another model than the same one in another."""
    shape = read(tmp_path, config(**spelling))
    assert (shape.rope_base, shape.rope_scaling) == (5e5, LLAMA3_ROPE)


def test_a_scaling_that_lacks_a_number_is_refused_naming_file_and_number(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", **LLAMA3_ROPE}
    del rope["factor"]
    with pytest.raises(ConfigError, match=r"config\.json lacks factor"):
        read(tmp_path, config(rope_scaling=rope))


@pytest.mark.parametrize("kind", [{"rope_type": "default"}, {"type": "default"}])
def test_a_scaling_that_is_the_default_is_none(kind: dict[str, str], tmp_path: Path) -> None:
    assert read(tmp_path, config(rope_scaling=kind)).rope_scaling is None


@pytest.mark.parametrize(("given", "tied"), [(..., False), (True, True), (False, False)])
def test_embeddings_are_tied_only_if_the_file_says_so(given: Any, tied: bool, tmp_path: Path) -> None:
    assert read(tmp_path, config(tie_word_embeddings=given)).tied_embeddings is tied


@pytest.mark.parametrize(
    ("family", "field", "expected"),
    [("llama", "head_dim", 8), ("qwen2", "head_dim", 8), ("qwen3", "head_dim", 128), ("llama", "num_key_value_heads", 8)],
)
@pytest.mark.parametrize("absent", [..., None], ids=["left out", "null"])
def test_an_absent_size_is_transformers_default(family: str, field: str, expected: int, absent: Any, tmp_path: Path) -> None:
    shape = read(tmp_path, config(family, **{field: absent}))
    assert {"head_dim": shape.head_dim, "num_key_value_heads": shape.num_kv_heads}[field] == expected


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("llama", "model_type", "mixtral"),
        ("llama", "model_type", ...),
        ("llama", "mlp_bias", True),
        ("llama", "attention_bias", True),
        ("qwen3", "attention_bias", True),
        ("qwen2", "use_sliding_window", True),
        ("llama", "hidden_act", "gelu"),
        ("llama", "rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("llama", "rope_scaling", {"type": "linear", "factor": 2.0}),
    ],
)
def test_what_would_be_another_model_is_refused_naming_file_and_field(
    family: str, field: str, value: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, config(family, **{field: value}))
    assert str(tmp_path / "config.json") in str(caught.value)
    assert field in str(caught.value)
    assert "supported" in str(caught.value)


@pytest.mark.parametrize(
    "field", ["num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size", "rms_norm_eps"]
)
def test_a_missing_size_is_refused_naming_file_and_field(field: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"config\.json lacks {field}"):
        read(tmp_path, config(**{field: ...}))


def test_a_directory_without_a_config_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{tmp_path} is no Hugging Face model directory"):
        ModelShape.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "tensor", "pipeline", "message"),
    [
        ({"num_heads": 6}, 4, 1, "tensor_model_parallel_size 4 does not divide the model's 6 attention heads"),
        ({"num_kv_heads": 2}, 4, 1, "tensor_model_parallel_size 4 does not divide the model's 2 key/value heads"),
        ({"ffn_size": 98, "num_kv_heads": 8}, 4, 1, "tensor_model_parallel_size 4 does not divide the model's 98 ffn size"),
        ({"num_layers": 5}, 1, 2, "pipeline_model_parallel_size 2 does not divide the model's 5 layers"),
    ],
)
def test_a_split_that_the_shapes_do_not_allow_is_refused(
    change: dict[str, int], tensor: int, pipeline: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(read(tmp_path, config()), **change).check_parallelism(tensor, pipeline)


def test_a_split_that_the_shapes_allow_is_accepted_and_pads_the_vocabulary(tmp_path: Path) -> None:
    shape = read(tmp_path, config())
    shape.check_parallelism(2, 4)
    assert [shape.padded_vocab(tensor) for tensor in (1, 2, 4)] == [101, 102, 104]
