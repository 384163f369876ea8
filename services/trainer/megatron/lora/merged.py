"""Weights with their adapters added. They are made beside the weights themselves, which never change, so that nothing
drifts: of a weight in bfloat16 only the sum is rounded, once."""

import torch
from torch import nn

from baton.errors import ConfigError
from services.trainer.megatron.lora.factors import lora_layers
from services.trainer.megatron.lora.layers import LoraVocabParallelEmbedding
from services.trainer.megatron.model import PolicyModel

CANNOT_MERGE = (
    "the model's head is its embedding (tie_word_embeddings), and the embedding's adapter is not to change the head; no "
    "model with merged weights says that: take VocabParallelEmbedding out of lora_layer, or set sync and checkpoint to "
    "adapter"
)


@torch.no_grad()
def merged_weight(layer: nn.Module) -> torch.Tensor:
    """The layer's weight with its adapters added: a new tensor of the weight's dtype."""
    return (layer.weight + layer.lora.weight_update()).to(layer.weight.dtype)


def merged_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """By the weight's name: those of the layers with adapters, as they are now. They stay where they are: the next call
    fills the same tensors. Raises ConfigError for what a merged model of this kind cannot be; see `require_mergeable`."""
    found: dict[str, torch.Tensor] = {}
    for name, layer in lora_layers(model):
        require_mergeable(model, layer)
        if (kept := getattr(layer, "merged", None)) is None:
            layer.merged = kept = torch.empty_like(layer.weight.data)
        found[f"{name}.weight"] = kept.copy_(merged_weight(layer))
    return found


def unties(model: nn.Module) -> bool:
    """Whether merging makes the embedding differ from the head that is tied to it."""
    return (
        isinstance(model, PolicyModel)
        and model.shape.tied_embeddings
        and any(isinstance(layer, LoraVocabParallelEmbedding) for _, layer in lora_layers(model))
    )


def require_mergeable(model: nn.Module, layer: nn.Module) -> None:
    """Raises ConfigError for an embedding that is also the head."""
    if isinstance(layer, LoraVocabParallelEmbedding) and unties(model):
        raise ConfigError(f"lora: {CANNOT_MERGE}")
