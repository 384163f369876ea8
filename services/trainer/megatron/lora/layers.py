"""Layers with LoRA: Megatron's and torch's, whose output also has what the adapters make of the input.

A layer is converted in place: it stays the same object, with the same weight under the same name. The adapter is the same
one under every layout. What is replicated over tensor-parallel ranks gets the same gradient on each of them; what is
between A and B, R numbers a token, is all that the ranks exchange for it.
"""

from typing import Any, Self

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
    scatter_to_tensor_model_parallel_region,
)
from torch import nn
from torch.nn import functional

from services.trainer.megatron.heads import ScalarHead
from services.trainer.megatron.lora.adapters import Adapters


class LoraLayer:
    """What the kinds have in common."""

    lora: Adapters
    sharded: dict[str, int] = {}  # noqa: RUF012 - constant in each class
    """Factors that are divided over tensor-parallel ranks, and by which axis."""
    embedding = False

    @classmethod
    def convert(cls, layer: nn.Module, adapters: Adapters) -> Self:
        """The layer itself, with `adapters`, of which it is the owner from now on."""
        layer.__class__ = cls
        layer.lora = adapters
        adapters.mark(sharded=cls.sharded, summed=layer._summed())
        return layer

    def _summed(self) -> str:
        """The factor of which each tensor-parallel rank has the gradient of its part of the sequence only."""
        return ""


class LoraColumnParallelLinear(LoraLayer, ColumnParallelLinear):
    """B is divided by outputs; A is replicated."""

    sharded = {"lora_B": 0}  # noqa: RUF012

    def _summed(self) -> str:
        return "lora_A" if self.sequence_parallel else ""

    def low(self, input_: torch.Tensor) -> torch.Tensor:
        """The layer's input through A; under sequence parallelism, of the whole sequence."""
        low = self.lora.down(input_, alike=not self.sequence_parallel)
        if self.sequence_parallel:
            return gather_from_sequence_parallel_region(low, group=self.tp_group)
        return copy_to_tensor_model_parallel_region(low, group=self.tp_group)

    def forward(
        self, input_: torch.Tensor, weight: torch.Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As Megatron's."""
        output, bias = super().forward(input_, weight, runtime_gather_output)
        if not self.lora.enabled:
            return output, bias
        update = self.lora.up(self.low(input_))
        if self.gather_output if runtime_gather_output is None else runtime_gather_output:
            update = gather_from_tensor_model_parallel_region(update, group=self.tp_group)
        return output + update, bias


class LoraRowParallelLinear(LoraLayer, RowParallelLinear):
    """A is divided by inputs; B is replicated."""

    sharded = {"lora_A": 1}  # noqa: RUF012

    def _summed(self) -> str:
        return "lora_B" if self.sequence_parallel else ""

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As Megatron's."""
        output, bias = super().forward(input_)
        if not self.lora.enabled:
            return output, bias
        if not self.input_is_parallel:
            input_ = scatter_to_tensor_model_parallel_region(input_, group=self.tp_group)
        summed = reduce_scatter_to_sequence_parallel_region if self.sequence_parallel else (
            reduce_from_tensor_model_parallel_region
        )  # fmt: skip
        low = summed(self.lora.down(input_, alike=False), group=self.tp_group)
        return output + self.lora.up(low), bias


class LoraVocabParallelEmbedding(LoraLayer, VocabParallelEmbedding):
    """A is divided by tokens; B is replicated. A head that is tied to the embedding stays as it is, as in PEFT."""

    sharded = {"lora_A": 1}  # noqa: RUF012
    embedding = True

    def _summed(self) -> str:
        return "lora_B" if self.reduce_scatter_embeddings else ""

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        """As Megatron's."""
        output = super().forward(input_)
        if not self.lora.enabled:
            return output
        (factors,) = self.lora.factors.values()
        elsewhere = (input_ < self.vocab_start_index) | (input_ >= self.vocab_end_index)
        own = (input_ - self.vocab_start_index).masked_fill(elsewhere, 0)
        low = functional.embedding(own, factors.lora_A.t()).masked_fill(elsewhere[..., None], 0) * self.lora.multiplier
        if self.reduce_scatter_embeddings:
            low = reduce_scatter_to_sequence_parallel_region(low.transpose(0, 1).contiguous(), group=self.tp_group)
        else:
            low = reduce_from_tensor_model_parallel_region(low, group=self.tp_group)
        return output + self.lora.up(low)


class LoraLinear(LoraLayer, nn.Linear):
    """torch's own, the same on every rank."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As torch's."""
        output = super().forward(input)
        return output + self.lora.up(self.lora.down(input, alike=True)) if self.lora.enabled else output


class LoraScalarHead(LoraLayer, ScalarHead):
    """In float32, as the head."""

    def forward(self, hidden_RH: torch.Tensor) -> torch.Tensor:
        """See ScalarHead."""
        output = super().forward(hidden_RH)
        if not self.lora.enabled:
            return output
        (factors,) = self.lora.factors.values()
        low = self.lora.down(hidden_RH, alike=True).float()
        return output + functional.linear(low, factors.lora_B.float())[:, 0]


class LoraEmbedding(LoraLayer, nn.Embedding):
    """torch's own, the same on every rank."""

    embedding = True

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As torch's."""
        output = super().forward(input)
        if not self.lora.enabled:
            return output
        (factors,) = self.lora.factors.values()
        low = functional.embedding(input, factors.lora_A.t()) * self.lora.multiplier
        return output + self.lora.up(low)


KINDS: dict[str, tuple[tuple[type[nn.Module], type[Any]], ...]] = {
    "ColumnParallelLinear": ((ColumnParallelLinear, LoraColumnParallelLinear),),
    "RowParallelLinear": ((RowParallelLinear, LoraRowParallelLinear),),
    "LinearLayer": ((nn.Linear, LoraLinear), (ScalarHead, LoraScalarHead)),
    "VocabParallelEmbedding": ((VocabParallelEmbedding, LoraVocabParallelEmbedding),),
    "Embedding": ((nn.Embedding, LoraEmbedding),),
}
"""By the name that `lora_layer` gives them: the layers, each with what it becomes."""
