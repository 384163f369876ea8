"""What a Hugging Face config means to Megatron-Core: Llama, Qwen2 and Qwen3 decoders."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.errors import ConfigError

FAMILIES = ("llama", "qwen2", "qwen3")


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
    rope_scaling: dict[str, Any] | None
    tied_embeddings: bool
    qkv_bias: bool
    qk_norm: bool

    @classmethod
    def read(cls, directory: Path) -> "ModelShape":
        """Reads `config.json`. Raises ConfigError for a missing file or a family that is not supported."""
        path = directory / "config.json"
        if not path.is_file():
            raise ConfigError(f"{directory} is no Hugging Face model directory: it has no config.json")
        raw = json.loads(path.read_text())
        family = raw.get("model_type")
        if family not in FAMILIES:
            raise ConfigError(f"{path}: model_type {family!r} cannot be trained; supported are {', '.join(FAMILIES)}")
        if raw.get("mlp_bias") or raw.get("use_sliding_window") or raw.get("hidden_act", "silu") != "silu":
            raise ConfigError(f"{path}: mlp_bias, sliding windows and activations other than silu are not supported")
        rope = raw.get("rope_parameters") or {}
        scaling = raw.get("rope_scaling") or (rope if rope.get("rope_type", "default") != "default" else None)
        if scaling and scaling.get("rope_type", scaling.get("type")) != "llama3":
            raise ConfigError(f"{path}: rope scaling {scaling} is not supported; 'llama3' is")
        heads = raw["num_attention_heads"]
        return cls(
            family=family,
            num_layers=raw["num_hidden_layers"],
            hidden_size=raw["hidden_size"],
            num_heads=heads,
            num_kv_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
            ffn_size=raw["intermediate_size"],
            vocab_size=raw["vocab_size"],
            max_positions=raw["max_position_embeddings"],
            norm_eps=raw["rms_norm_eps"],
            rope_base=raw.get("rope_theta") or rope.get("rope_theta", 10000.0),
            rope_scaling=scaling,
            tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
            qkv_bias=family == "qwen2" or bool(raw.get("attention_bias", False)),
            qk_norm=family == "qwen3",
        )

    def check_parallelism(self, tensor: int, pipeline: int) -> None:
        """Raises ConfigError if the shapes cannot be split that way."""
        for name, size in (("attention heads", self.num_heads), ("key/value heads", self.num_kv_heads), ("ffn size", self.ffn_size)):
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
