"""What a Hugging Face config means to Megatron-Core: Llama, Qwen2 and Qwen3 decoders."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.errors import ConfigError

FAMILIES = ("llama", "qwen2", "qwen3")
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
"""All that the scaling of that kind depends on; what else its section of config.json holds is spelling."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes and switches of a decoder, read from config.json."""

    family: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    rope_base: float
    rope_scaling: dict[str, float] | None
    """The numbers of Llama 3's, if the model has it."""
    tied_embeddings: bool
    qkv_bias: bool
    qk_norm: bool
    scalar_head: bool = False
    """Whether the model ends in one number instead of logits."""

    @classmethod
    def read(cls, directory: Path) -> "ModelShape":
        """Reads `config.json`. Raises ConfigError for a missing file or a family that is not supported."""
        path = directory / "config.json"
        if not path.is_file():
            raise ConfigError(f"{directory} is no Hugging Face model directory: it has no config.json")
        raw = json.loads(path.read_text())
        if raw.get("model_type") not in FAMILIES:
            supported = ", ".join(FAMILIES)
            raise ConfigError(f"{path}: model_type {raw.get('model_type')!r} cannot be trained; supported are {supported}")
        _refuse_unsupported(raw, path)
        try:
            return cls._of(raw)
        except KeyError as error:
            raise ConfigError(f"{path} lacks {error.args[0]}; take the config.json that came with the model") from None

    @classmethod
    def _of(cls, raw: dict[str, Any]) -> "ModelShape":
        family, heads, rope = raw["model_type"], raw["num_attention_heads"], _rope(raw)
        return cls(
            family=family,
            num_layers=raw["num_hidden_layers"],
            hidden_size=raw["hidden_size"],
            num_heads=heads,
            num_kv_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or (128 if family == "qwen3" else raw["hidden_size"] // heads),
            ffn_size=raw["intermediate_size"],
            vocab_size=raw["vocab_size"],
            max_positions=raw["max_position_embeddings"],
            norm_eps=raw["rms_norm_eps"],
            rope_base=raw.get("rope_theta") or rope.get("rope_theta", 10000.0),
            rope_scaling={name: float(rope[name]) for name in _LLAMA3} if _rope_kind(rope) == "llama3" else None,
            tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
            qkv_bias=family == "qwen2",
            qk_norm=family == "qwen3",
        )

    def check_parallelism(self, tensor: int, pipeline: int) -> None:
        """Raises ConfigError if the shapes cannot be split that way."""
        for name, size in (
            ("attention heads", self.num_heads),
            ("key/value heads", self.num_kv_heads),
            ("ffn size", self.ffn_size),
        ):
            if size % tensor:
                raise ConfigError(
                    f"tensor_model_parallel_size {tensor} does not divide the model's {size} {name}; choose a divisor"
                )
        if self.num_layers % pipeline:
            raise ConfigError(
                f"pipeline_model_parallel_size {pipeline} does not divide the model's {self.num_layers} layers"
            )

    def padded_vocab(self, tensor: int) -> int:
        """Vocabulary rows, rounded up so that every tensor-parallel rank holds as many."""
        return -(-self.vocab_size // tensor) * tensor


def _rope(raw: dict[str, Any]) -> dict[str, Any]:
    """The rotary embedding's options: `rope_parameters` since transformers 5, `rope_scaling` before."""
    return raw.get("rope_scaling") or raw.get("rope_parameters") or {}


def _rope_kind(rope: dict[str, Any]) -> str:
    return rope.get("rope_type", rope.get("type", "default"))


def _refuse_unsupported(raw: dict[str, Any], path: Path) -> None:
    """Raises ConfigError, naming file and field, for what would silently make another model."""
    only = {"mlp_bias": False, "use_sliding_window": False, "hidden_act": "silu"}
    if raw["model_type"] != "qwen2":  # which has biases on q, k and v whatever this says
        only["attention_bias"] = False  # it would also put a bias on the output projection
    for field, supported in only.items():
        if (value := raw.get(field, supported)) != supported:
            raise ConfigError(f"{path}: {field} {value!r} is not supported; only {supported!r} is")
    if _rope_kind(_rope(raw)) not in ("default", "llama3"):
        raise ConfigError(f"{path}: rope_scaling {_rope(raw)} is not supported; 'default' and 'llama3' are")
