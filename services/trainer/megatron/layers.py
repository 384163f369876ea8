"""The parts of a decoder layer that are ours: norms, and self-attention over packed rows.

Shape suffixes: T packed tokens, H hidden, D dimensions of a head.
"""

from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

from services.trainer.megatron.attention import PackedAttention, PackedLayout
from services.trainer.megatron.fusion import fused_on_cuda


@fused_on_cuda(at_least=16 << 20)
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x over its root mean square along the last dimension, times `weight`; computed in float32, rounded once."""
    return nn.functional.rms_norm(x, weight.shape, weight, eps)


def _rotated(x: torch.Tensor, cos_TD: torch.Tensor, sin_TD: torch.Tensor) -> torch.Tensor:
    """Turns the pairs (i, i + D / 2) of `x` [T, heads, D] by their angles."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos_TD[:, None], sin_TD[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


@fused_on_cuda()
def query_key_value(
    mixed: torch.Tensor, weights: tuple[torch.Tensor, torch.Tensor] | None, eps: float, heads: tuple[int, int, int],
    cos_TD: torch.Tensor, sin_TD: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Parts the joint projection [T, 1, ...] into queries [T, heads, D], keys and values [T, KV heads, D]; norms and turns.

    `heads` is (KV heads, queries to each, D); `weights` are the query and key norm's, None without them. `cos_TD` and
    `sin_TD` are of D / 2 angles.
    """
    groups, each, size = heads
    tokens = mixed.shape[0]
    query, key, value = mixed.view(tokens, groups, each + 2, size).split([each, 1, 1], dim=2)
    query, key, value = query.reshape(tokens, groups * each, size), key[:, :, 0], value[:, :, 0]
    if weights is not None:
        query = nn.functional.rms_norm(query, (size,), weights[0], eps)
        key = nn.functional.rms_norm(key, (size,), weights[1], eps)
    return _rotated(query, cos_TD, sin_TD), _rotated(key, cos_TD, sin_TD), value.contiguous()


class Norm(nn.Module):
    """RMSNorm as Megatron builds it. Under sequence parallelism each rank has a part of the sequence, so the weight is
    marked for Megatron to add up its gradients."""

    def __init__(self, config: Any, hidden_size: int, eps: float, **_megatron: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.weight.sequence_parallel = config.sequence_parallel
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same shape and dtype."""
        return rms_norm(x, self.weight, self.eps)


class PackedSelfAttention(SelfAttention):
    """Megatron's self-attention, with everything between the two projections in two steps for a packed row."""

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: None, *, packed_seq_params: PackedLayout | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:  # fmt: skip
        """[T, 1, H] -> ([T, 1, H], no bias). A static batch, which has no layout, takes Megatron's own way."""
        layout = packed_seq_params
        if layout is None:
            return super().forward(hidden_states, attention_mask, **kwargs)
        mixed, _ = self.linear_qkv(hidden_states)
        groups = self.num_query_groups_per_partition
        heads = (groups, self.num_attention_heads_per_partition // groups, self.hidden_size_per_attention_head)
        weights = (self.q_layernorm.weight, self.k_layernorm.weight) if self.config.qk_layernorm else None
        cos, sin = layout.turns(mixed.dtype)
        query, key, value = query_key_value(mixed, weights, self.config.layernorm_epsilon, heads, cos, sin)
        attended = self.core_attention.packed(query, key, value, layout)
        return self.linear_proj(attended[:, None])


def layer_specs(config: TransformerConfig) -> TransformerBlockSubmodules:
    """This pipeline stage's layers: Megatron's local ones with these parts in them."""
    spec = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization="RMSNorm")
    layer, attention = spec.submodules, spec.submodules.self_attention
    attention.module = PackedSelfAttention
    attention.submodules.core_attention = PackedAttention
    layer.input_layernorm = layer.pre_mlp_layernorm = Norm
    if config.qk_layernorm:
        attention.submodules.q_layernorm = attention.submodules.k_layernorm = Norm
    return TransformerBlockSubmodules(layer_specs=[spec] * get_num_layers_to_build(config), layer_norm=Norm)
