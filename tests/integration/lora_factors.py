"""Random adapters for a model by transformers, under PEFT's names, and the model with one added to its weights."""

import copy

import torch

RANK = 4
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")


def random_factors(model: torch.nn.Module, seed: int, *, rank: int = RANK, size: float = 0.3) -> dict[str, torch.Tensor]:
    """Of all linear layers and the embedding; a head that is tied to it has none."""
    random, factors = torch.Generator().manual_seed(seed), {}
    tied = model.config.tie_word_embeddings

    def drawn(*shape: int) -> torch.Tensor:
        return size * torch.randn(shape, generator=random)

    for name, module in model.named_modules():
        if name.endswith("embed_tokens"):
            tokens, hidden = module.weight.shape
            factors |= {f"{name}.lora_embedding_A": drawn(rank, tokens), f"{name}.lora_embedding_B": drawn(hidden, rank)}
        elif name.endswith(LINEAR) and not (tied and name == "lm_head"):
            outputs, inputs = module.weight.shape
            factors |= {f"{name}.lora_A.weight": drawn(rank, inputs), f"{name}.lora_B.weight": drawn(outputs, rank)}
    return factors


@torch.no_grad()
def with_adapter(model: torch.nn.Module, factors: dict[str, torch.Tensor], multiplier: float = 1.0) -> torch.nn.Module:
    """The model whose weights have multiplier * B @ A added; a tied head stays as it is, so it is none any more."""
    merged = copy.deepcopy(model)
    if model.config.tie_word_embeddings:
        merged.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    for name, first in factors.items():
        if name.endswith(".lora_A.weight"):
            second = factors[name.replace("lora_A", "lora_B")]
            merged.get_submodule(name.removesuffix(".lora_A.weight")).weight += multiplier * second @ first
        elif name.endswith(".lora_embedding_A"):
            second = factors[name.replace("lora_embedding_A", "lora_embedding_B")]
            merged.get_submodule(name.removesuffix(".lora_embedding_A")).weight += multiplier * (second @ first).t()
    return merged
