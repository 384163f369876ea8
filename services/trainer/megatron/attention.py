"""Core attention on PyTorch's fused kernels, over packed segments or a static batch; plugged into Megatron's layer spec."""

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch.nn.functional import pad, scaled_dot_product_attention

from services.trainer.megatron import varlen
from services.trainer.packing import Segment, segment_mask

LONG, FULL = 2048, 8192
"""Tokens from which on CUDA a sequence may go through the kernel for sequences of one length, and tokens that such a call
must have. On an H100 it (cuDNN's) is 1.75 times as fast as the one for unequal lengths at 4096 tokens, and not faster at
1024; but forward and backward of each call take the host up to a millisecond, as long as 8192 tokens save."""
_STEPS = 16
"""Different lengths of such calls between a power of two and the next. Each costs cuDNN a plan of 0.2 s, once."""


@dataclass(frozen=True, slots=True)
class Call:
    """Consecutive segments that go through a kernel together: long ones of about one length, or others as `parts` says."""

    lengths: tuple[int, ...]
    parts: varlen.Parts | None

    @property
    def tokens(self) -> int:
        """Of all of them."""
        return sum(self.lengths)


def calls_of(segments: tuple[Segment, ...], device: torch.device, *, long: int, full: int) -> tuple[Call, ...]:
    """A row's calls, in its order. `long` and `full` are what LONG and FULL say of CUDA."""

    def size(segment: Segment) -> int:
        """At which it could be computed beside others; 0: not so."""
        return room(segment.length) if len(segment.branches) == 1 and segment.length >= long else 0

    calls: list[Call] = []
    others: list[Segment] = []

    def finish() -> None:
        if others:
            start = others[0].start
            shifted = tuple(Segment(segment.start - start, segment.prompt, segment.branches) for segment in others)
            calls.append(Call(tuple(segment.length for segment in others), varlen.Parts.of(shifted, device)))
            others.clear()

    for alike, run in groupby(segments, size):
        members = tuple(run)
        lengths = tuple(segment.length for segment in members)
        if alike and sum(lengths) >= full:
            finish()
            calls.append(Call(lengths, None))
        else:
            others.extend(members)
    finish()
    return tuple(calls)


def room(tokens: int) -> int:
    """The length at which a long sequence is computed: at least `tokens`, at most 1 / _STEPS more."""
    step = (1 << (tokens.bit_length() - 1)) // _STEPS
    return -(-tokens // step) * step


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
    def calls(self) -> tuple[Call, ...]:
        """The segments for the flash kernels."""
        device = self.angles_TD.device
        if device.type == "cuda":
            return calls_of(self.segments, device, long=LONG, full=FULL)
        lengths = tuple(segment.length for segment in self.segments)
        return (Call(lengths, varlen.Parts.of(self.segments, device)),)

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
            return self._flash(query, key, value, layout.calls).flatten(1)
        return self._masked(query, key, value, layout).flatten(1)

    def _masked(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: PackedLayout) -> torch.Tensor:
        """For what the flash kernels do not take: float32 on CUDA."""
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
        return torch.cat(outputs, dim=2)[0].transpose(0, 1)

    def _flash(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, calls: tuple[Call, ...]
    ) -> torch.Tensor:
        """-> [T, heads, D]."""
        sizes = [call.tokens for call in calls]
        outputs = [
            varlen.varlen_attention(q, k, v, call.parts, self.scale) if call.parts else self._long(q, k, v, call.lengths)
            for call, q, k, v in zip(calls, *(x.split(sizes) for x in (query, key, value)), strict=True)
        ]
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    def _long(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: tuple[int, ...]
    ) -> torch.Tensor:
        """Causal sequences, each lengthened to one size at its end, where none of its own tokens looks."""
        size = room(max(lengths))
        q, k, v = (_stacked(x, lengths, size).transpose(1, 2) for x in (query, key, value))
        output = scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=self.scale, enable_gqa=q.shape[1] != k.shape[1]
        ).transpose(1, 2)
        if min(lengths) == size:
            return output.flatten(0, 1)
        return torch.cat([row[:length] for row, length in zip(output, lengths, strict=True)])

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


def _stacked(x: torch.Tensor, lengths: tuple[int, ...], size: int) -> torch.Tensor:
    """[sum of lengths, heads, D] -> [sequences, size, heads, D]."""
    if min(lengths) == size:
        return x.unflatten(0, (len(lengths), size))
    return torch.stack([pad(row, (0, 0, 0, 0, 0, size - len(row))) for row in x.split(lengths)])
