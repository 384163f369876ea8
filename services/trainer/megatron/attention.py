"""Core attention on PyTorch's fused kernels, over packed segments or a static batch; plugged into Megatron's layer spec."""

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch.nn.functional import scaled_dot_product_attention

from services.trainer.packing import PackedBatch, Segment, segment_mask


@dataclass
class PackedLayout(PackedSeqParams):
    """The segments of a packed row, with their masks. Megatron hands it through to every layer's core attention."""

    segments: tuple[Segment, ...] = ()
    masks: tuple[torch.Tensor | None, ...] = ()

    @classmethod
    def of(cls, batch: PackedBatch) -> "PackedLayout":
        """Builds the masks once for all layers."""
        device = batch.tokens_T.device
        masks = tuple(segment_mask(segment, device) for segment in batch.segments)
        return cls(qkv_format="sbhd", segments=batch.segments, masks=masks)


class PackedAttention(torch.nn.Module):
    """Attention within each segment of a packed row, or within each row of a static batch when there is no layout.

    Grouped-query heads are not expanded.
    """

    def __init__(self, config: Any, softmax_scale: float | None = None, **_megatron: Any) -> None:
        super().__init__()
        self.scale = softmax_scale
        self.dropout = config.attention_dropout

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: None, *,
        packed_seq_params: PackedLayout | None, **_megatron: Any,
    ) -> torch.Tensor:  # fmt: skip
        """`query` [T, 1, heads, d], `key` and `value` [T, 1, KV heads, d] -> [T, 1, heads * d].

        Static batch: `query` [L, B, heads, d] of the last L positions, `key` and `value` [S, B, KV heads, d] of all S so
        far -> [L, B, heads * d]. L is S at the initiation and 1 in an increment.
        """
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        if packed_seq_params is None:
            whole = query.shape[0] == key.shape[0]
            output = scaled_dot_product_attention(
                q, k, v, is_causal=whole, scale=self.scale, enable_gqa=q.shape[1] != k.shape[1]
            )
            return output.permute(2, 0, 1, 3).flatten(2)
        outputs = []
        for segment, mask in zip(packed_seq_params.segments, packed_seq_params.masks, strict=True):
            part = slice(segment.start, segment.start + segment.length)
            outputs.append(
                scaled_dot_product_attention(
                    q[:, :, part], k[:, :, part], v[:, :, part], attn_mask=mask, is_causal=mask is None,
                    scale=self.scale, enable_gqa=q.shape[1] != k.shape[1], dropout_p=self.dropout if self.training else 0.0,
                )
            )  # fmt: skip
        return torch.cat(outputs, dim=2).permute(2, 0, 1, 3).flatten(2)
