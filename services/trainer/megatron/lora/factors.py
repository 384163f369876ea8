"""A model's adapter factors under their names in PEFT, and the rectangle of each that this rank holds."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from services.common.weight_sync.plan import Part, Region
from services.trainer.megatron.lora.adapters import Factors
from services.trainer.megatron.lora.layers import LoraLayer
from services.trainer.megatron.parallel import Layout


@dataclass(frozen=True, slots=True)
class Factor:
    """One of the two factors of a projection."""

    name: str
    """As `model.layers.3.self_attn.q_proj.lora_A.weight`, or `model.embed_tokens.lora_embedding_A`."""
    parameter: nn.Parameter
    shape: tuple[int, int]
    """Of the whole factor."""
    rows: tuple[int, int]
    columns: tuple[int, int]
    sharded: bool
    """Whether each tensor-parallel rank holds something else; if not, all hold the same."""

    @property
    def matrix(self) -> torch.Tensor:
        """The rectangle, as a view of the parameter; what pads a vocabulary is left out."""
        height, width = self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]
        return self.parameter.data[:height, :width]

    @property
    def of_vocabulary(self) -> bool:
        """Whether the divided axis is the vocabulary's, which is padded where the ranks do not divide it."""
        return self.name.startswith(("model.embed_tokens.", "lm_head."))


def lora_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers with adapters, by their name in this pipeline stage."""
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            yield name, layer


def is_adapted(model: nn.Module) -> bool:
    """Whether a layer of this pipeline stage has adapters."""
    return any(True for _ in lora_layers(model))


def factors_of(model: nn.Module) -> Iterator[Factor]:
    """Both factors of every projection of this pipeline stage."""
    for _, layer in lora_layers(model):
        for factors in layer.lora.factors.values():
            yield from _both(factors)


def _both(factors: Factors) -> Iterator[Factor]:
    projection = factors.projection
    whole = {"lora_A": factors.whole_A, "lora_B": factors.whole_B}
    if factors.embedding:  # B @ A is the weight's transpose
        held = {"lora_A": projection.rows, "lora_B": projection.columns}
        names = {"lora_A": "lora_embedding_A", "lora_B": "lora_embedding_B"}
    else:
        held = {"lora_A": projection.columns, "lora_B": projection.rows}
        names = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
    for letter, parameter in factors.named_parameters():
        rank = (0, whole["lora_A"][0])
        rows, columns = (rank, held[letter]) if letter == "lora_A" else (held[letter], rank)
        sharded = getattr(parameter, "tensor_model_parallel", False)
        yield Factor(f"{projection.name}.{names[letter]}", parameter, whole[letter], rows, columns, sharded)


def adapter_regions(model: nn.Module, layout: Layout, dtype: torch.dtype) -> Iterator[Region]:
    """What this rank sends of the adapters, so that all ranks of a data-parallel replica together send every element once;
    parts travel as `dtype`. The names are PEFT's without their prefix `base_model.model.`."""
    for factor in factors_of(model):
        if factor.sharded or layout.tensor_rank == 0:
            part = Part(factor.name, dtype, factor.shape, factor.rows, factor.columns)
            yield Region(part, factor.matrix)
