"""Core attention on PyTorch's fused kernels, over packed segments or a static batch; plugged into Megatron's layer spec."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch.nn.functional import scaled_dot_product_attention

from services.trainer.megatron import varlen
from services.trainer.packing import Segment, segment_mask


@dataclass
class PackedLayout(PackedSeqParams):
    """The segments of a packed row and what all layers need of them. Megatron hands it through to every layer."""

    segments: tuple[Segment, ...] = ()
    angles_TD: torch.Tensor | None = None
    """Rotary angles [T, D / 2], float32."""

    @cached_property
    def masks(self) -> tuple[torch.Tensor | None, ...]:
        """One for each segment; None where it is plainly causal."""
        return tuple(segment_mask(segment, self.angles_TD.device) for segment in self.segments)

    @cached_property
    def parts(self) -> varlen.Parts:
        """The segments for the kernels of unequal lengths."""
        return varlen.Parts.of(self.segments, self.angles_TD.device)

    @cached_property
    def _turns(self) -> dict[torch.dtype, tuple[torch.Tensor, torch.Tensor]]:
        return {}

    def turns(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the angles, rounded to the model's dtype as the rollout engine rounds them."""
        if dtype not in self._turns:
            self._turns[dtype] = self.angles_TD.cos().to(dtype), self.angles_TD.sin().to(dtype)
        return self._turns[dtype]


class PackedAttention(torch.nn.Module):
    """Attention within each segment of a packed row, or within each row of a static batch.

    Grouped-query heads are not expanded.
    """

    def __init__(self, config: Any, softmax_scale: float | None = None, **_megatron: Any) -> None:
        super().__init__()
        self.scale = softmax_scale

    def packed(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: PackedLayout) -> torch.Tensor:
        """`query` [T, heads, D], `key` and `value` [T, KV heads, D] -> [T, heads * D]."""
        if varlen.supports(query):
            return varlen.varlen_attention(query, key, value, layout.parts, self.scale).flatten(1)
        q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
        outputs = []
        for segment, mask in zip(layout.segments, layout.masks, strict=True):
            part = slice(segment.start, segment.start + segment.length)
            outputs.append(
                scaled_dot_product_attention(
                    q[:, :, part], k[:, :, part], v[:, :, part], attn_mask=mask, is_causal=mask is None,
                    scale=self.scale, enable_gqa=q.shape[1] != k.shape[1],
                )
            )  # fmt: skip
        return torch.cat(outputs, dim=2)[0].transpose(0, 1).flatten(1)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: None, **_megatron: Any
    ) -> torch.Tensor:
        """Static batch: `query` [L, B, heads, D] of the last L positions, `key` and `value` [S, B, KV heads, D] of all S so
        far -> [L, B, heads * D]. L is S at the initiation and 1 in an increment."""
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        whole = query.shape[0] == key.shape[0]
        grouped = q.shape[1] != k.shape[1]
        output = scaled_dot_product_attention(q, k, v, is_causal=whole, scale=self.scale, enable_gqa=grouped)
        return output.permute(2, 0, 1, 3).flatten(2)
