"""Megatron's sums over many tensors in a few kernels.

Without Apex or TransformerEngine, Megatron takes the norm of each gradient by itself and waits for it, and scales each with
a copy. torch has both for lists of tensors.
"""

from typing import Any

import torch
from megatron.core.optimizer import clip_grads

Lists = list[list[torch.Tensor]]
"""One list of tensors for each operand."""


def _l2_norm(_chunk: int, _overflow: torch.Tensor, lists: Lists, _per_tensor: bool, *_: Any) -> tuple[torch.Tensor, None]:
    """The norm of all tensors of the one list together, [1]."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(lists[0]))).reshape(1), None


def _scale(_chunk: int, _overflow: torch.Tensor, lists: Lists, factor: float) -> None:
    """Writes the first list's tensors times `factor` to the second's, which are the same where Megatron clips."""
    sources, targets = lists
    if not targets:  # a stage that trains nothing; torch takes no empty list
        return
    if any(source is not target for source, target in zip(sources, targets, strict=True)):
        torch._foreach_copy_(targets, sources)
    torch._foreach_mul_(targets, factor)


def use_lists() -> None:
    """Gives Megatron these in place of its own fallbacks; its fused ones, if it has them, stay."""
    if clip_grads.l2_norm_impl is getattr(clip_grads, "local_multi_tensor_l2_norm", None):
        clip_grads.l2_norm_impl, clip_grads.multi_tensor_scale_impl = _l2_norm, _scale
