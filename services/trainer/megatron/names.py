"""Hugging Face names and layouts <-> Megatron-Core's, as pure functions of tensors.

Megatron fuses q, k, v into `linear_qkv`, one block [q heads of the group, k, v] per key/value head, and gate and up into
`linear_fc1`, [gate shard, up shard] on every rank. Everything else differs by name only.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from services.trainer.megatron.family import ModelShape

Tensors = list[torch.Tensor]


@dataclass(frozen=True, slots=True)
class Rule:
    """How one Megatron parameter relates to Hugging Face tensors.

    `split` makes one rank's shard of whole tensors; `merge` makes whole tensors of all ranks' shards.
    """

    hf_names: tuple[str, ...]
    split: Callable[[Tensors, int, int], torch.Tensor]
    merge: Callable[[Tensors], Tensors]


def _replicated() -> tuple[Callable, Callable]:
    return (lambda whole, rank, size: whole[0]), (lambda shards: [shards[0]])


def _sharded(dim: int) -> tuple[Callable, Callable]:
    return (lambda whole, rank, size: whole[0].chunk(size, dim)[rank]), (lambda shards: [torch.cat(shards, dim)])


def _vocab(rows: int) -> tuple[Callable, Callable]:
    def split(whole: Tensors, rank: int, size: int) -> torch.Tensor:
        padding = -(-rows // size) * size - rows
        return torch.nn.functional.pad(whole[0], (0, 0, 0, padding)).chunk(size)[rank]

    return split, lambda shards: [torch.cat(shards)[:rows]]


def _gate_up() -> tuple[Callable, Callable]:
    def split(whole: Tensors, rank: int, size: int) -> torch.Tensor:
        return torch.cat([part.chunk(size)[rank] for part in whole])

    def merge(shards: Tensors) -> Tensors:
        return [torch.cat(parts) for parts in zip(*(shard.chunk(2) for shard in shards), strict=True)]

    return split, merge


def _qkv(shape: ModelShape) -> tuple[Callable, Callable]:
    groups, d = shape.num_kv_heads, shape.head_dim
    per_group = shape.num_heads // groups

    def split(whole: Tensors, rank: int, size: int) -> torch.Tensor:
        q, k, v = (part.view(groups, -1, *part.shape[1:]) for part in whole)
        fused = torch.cat([q, k, v], dim=1)  # [groups, (per_group + 2) * d, ...]
        return fused.chunk(size)[rank].flatten(0, 1)

    def merge(shards: Tensors) -> Tensors:
        fused = torch.cat(shards)
        fused = fused.view(groups, (per_group + 2) * d, *fused.shape[1:])
        return [part.flatten(0, 1) for part in fused.split([per_group * d, d, d], dim=1)]

    return split, merge


class NameMap:
    """Finds the rule of each Megatron parameter of one model."""

    def __init__(self, shape: ModelShape) -> None:
        self._tied = shape.tied_embeddings
        attention, mlp = "self_attn.", "mlp."
        self._outer = {
            "embedding.word_embeddings.weight": Rule(("model.embed_tokens.weight",), *_vocab(shape.vocab_size)),
            "decoder.final_layernorm.weight": Rule(("model.norm.weight",), *_replicated()),
            "output_layer.weight": Rule(("lm_head.weight",), *_vocab(shape.vocab_size)),
        }
        if shape.scalar_head:
            self._outer["output_layer.weight"] = Rule(("score.weight",), *_replicated())
        qkv = [tuple(f"{attention}{x}_proj.{kind}" for x in "qkv") for kind in ("weight", "bias")]
        self._inner = {
            "input_layernorm.weight": Rule(("input_layernorm.weight",), *_replicated()),
            "self_attention.linear_qkv.weight": Rule(qkv[0], *_qkv(shape)),
            "self_attention.linear_qkv.bias": Rule(qkv[1], *_qkv(shape)),
            "self_attention.q_layernorm.weight": Rule((attention + "q_norm.weight",), *_replicated()),
            "self_attention.k_layernorm.weight": Rule((attention + "k_norm.weight",), *_replicated()),
            "self_attention.linear_proj.weight": Rule((attention + "o_proj.weight",), *_sharded(1)),
            "pre_mlp_layernorm.weight": Rule(("post_attention_layernorm.weight",), *_replicated()),
            "mlp.linear_fc1.weight": Rule((mlp + "gate_proj.weight", mlp + "up_proj.weight"), *_gate_up()),
            "mlp.linear_fc2.weight": Rule((mlp + "down_proj.weight",), *_sharded(1)),
        }

    def rule(self, name: str, first_layer: int) -> Rule | None:
        """The rule of a stage-local parameter name; None for the tied copy of the embedding on the last stage.

        `first_layer` is the number of the stage's first layer in the whole model.
        """
        if name == "output_layer.weight" and self._tied:
            return None
        if name in self._outer:
            return self._outer[name]
        match = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", name)
        if match is None or match[2] not in self._inner:
            raise KeyError(f"no Hugging Face counterpart is known for Megatron's parameter {name}")
        rule = self._inner[match[2]]
        prefix = f"model.layers.{int(match[1]) + first_layer}."
        return Rule(tuple(prefix + part for part in rule.hf_names), rule.split, rule.merge)

    def rules(self, parameters: Iterator[tuple[str, torch.Tensor]], first_layer: int) -> Iterator[tuple[Rule, torch.Tensor]]:
        """Pairs each parameter with its rule, leaving tied copies out."""
        for name, parameter in parameters:
            if rule := self.rule(name, first_layer):
                yield rule, parameter
