"""What vLLM must be told to have room for a run's adapters, and whether it can have them."""

from collections.abc import Iterable
from typing import Any

from baton.config.lora import LoraConfig
from baton.errors import ConfigError
from services.rollout.vllm_adapters import SLOTS

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM makes room for; a smaller adapter leaves some of it empty."""

_QUERY_KEY_VALUE = ("q_proj", "k_proj", "v_proj")
_HEAD = "lm_head"
_MODULES = {
    "ColumnParallelLinear": (*_QUERY_KEY_VALUE, "gate_proj", "up_proj", _HEAD),
    "RowParallelLinear": ("o_proj", "down_proj"),
    "VocabParallelEmbedding": ("embed_tokens",),
    "Embedding": (),
    "LinearLayer": (),
}
"""Modules of a decoder, as Hugging Face's models call them, by Megatron's kind of layer; the last two kinds are in none."""

_PACKED = {"qkv_proj": _QUERY_KEY_VALUE, "gate_up_proj": ("gate_proj", "up_proj")}
"""What vLLM makes one module of."""


def lora_args(lora: LoraConfig, model: Any) -> dict[str, Any]:
    """Engine arguments for a model of this config, by transformers. Raises ConfigError for a rank that is too large."""
    if lora.lora_dim > RANKS[-1]:
        raise ConfigError(
            f"models.ppo_policy.lora.lora_dim: got {lora.lora_dim}; vLLM holds adapters of a rank of at most {RANKS[-1]}; "
            "lower it, or set models.ppo_policy.lora.sync to merged"
        )
    names = target_modules(lora, model)
    packed = [whole for whole, parts in _PACKED.items() if not names.isdisjoint(parts)]
    return {
        "enable_lora": True,
        "max_lora_rank": next(rank for rank in RANKS if rank >= lora.lora_dim),
        "max_loras": SLOTS,
        "max_cpu_loras": SLOTS,
        "lora_target_modules": sorted(names) + packed,  # each of them takes memory and time, adapted or not
    }


def target_modules(lora: LoraConfig, model: Any) -> set[str]:
    """Last parts of the names of the modules that may have an adapter."""
    names = {name for kind in lora.layers for name in _MODULES[kind]}
    if lora.column_only_qkv:
        names -= set(_MODULES["ColumnParallelLinear"]) - set(_QUERY_KEY_VALUE)
    if getattr(model, "tie_word_embeddings", False):
        names.discard(_HEAD)
    return names


def check_adapted(lora: LoraConfig, model: Any, adapted: Iterable[str]) -> None:
    """Raises ConfigError if vLLM, which adapts modules of these names in this model, lacks a kind that the run adapts."""
    if lora.part_module_name is not None:  # that may leave any of them out
        return
    if lost := sorted(target_modules(lora, model) - {name.rpartition(".")[2] for name in adapted}):
        raise ConfigError(
            f"models.ppo_policy.lora.sync: got 'adapter'; vLLM cannot adapt {', '.join(lost)} of this model; set it to "
            "merged, or leave that kind of layer out of lora_layer"
        )
