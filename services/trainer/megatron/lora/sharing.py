"""One copy of frozen weights for several models of a group: the reference is the policy with its adapters off, and other
models of the same directory have the policy's weights under adapters and a head of their own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from baton.config.trainable import ForwardConfig
from services.trainer.megatron.hosted import HostedModel
from services.trainer.megatron.lora.factors import lora_layers
from services.trainer.megatron.names import base_parameters
from services.trainer.packing import PackedBatch


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within it, `model` computes with its own weights only."""
    layers = [layer for _, layer in lora_layers(model)]
    for layer in layers:
        layer.lora.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.lora.enabled = True


class WithoutAdapters(HostedModel):
    """The base of a model that is trained with adapters. It has no weights of its own."""

    def __init__(self, trained: HostedModel, config: ForwardConfig) -> None:
        self.layout, self.head, self.source, self.shape = trained.layout, trained.head, trained.source, trained.shape
        self.role, self.load = trained.role, trained.load
        self.policy, self.model, self.share_prefix = trained.policy, trained.model, config.share_prefix

    def parameter_count(self) -> int:
        """See HostedModel."""
        return sum(parameter.numel() for _, parameter in base_parameters(self.policy))

    def score(self, batches: Sequence[PackedBatch]) -> list[torch.Tensor]:
        """See HostedModel."""
        with adapters_off(self.policy):
            return super().score(batches)
