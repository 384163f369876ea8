"""Adapters on a CPU, by adapter: vLLM's own operations copy an adapter's weights once for every token that it is of.

Here the tokens of each adapter go through its weights together. Sizes: T tokens, I inputs, O outputs, S slots.
"""

from collections.abc import Iterator

import torch


def install() -> None:
    """Has vLLM's layers with adapters on a CPU use these. A second call changes nothing."""
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    for replacement in (bgmv_shrink, bgmv_expand, bgmv_expand_slice):
        for module in (lora_ops, punica_cpu):
            setattr(module, replacement.__name__, replacement)


def bgmv_shrink(
    inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, slots: torch.Tensor, scale: float = 1.0
) -> None:  # fmt: skip
    """Writes inputs [T, I] through weights [S, 1, O, I], scaled, into the first O columns of `output`; `slots` [T] says
    which one each token has, -1 none: that is 0."""
    output[:, : weights.shape[-2]] = 0
    _add(inputs, weights, output[:, : weights.shape[-2]], slots, scale)


def bgmv_expand(
    inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, slots: torch.Tensor, add_inputs: bool = True
) -> None:  # fmt: skip
    """Adds the same to `output`, or overwrites it, as far as both have columns: the layer may pad more than the adapter."""
    common = min(weights.shape[-2], output.shape[1])
    bgmv_expand_slice(inputs, weights[..., :common, :], output, slots, 0, common, add_inputs)


def bgmv_expand_slice(
    inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, slots: torch.Tensor, offset: int, size: int,
    add_inputs: bool = True,
) -> None:  # fmt: skip
    """The same, in `size` columns from `offset`."""
    part = output[: len(inputs), offset : offset + size]
    if not add_inputs:
        part.zero_()
    _add(inputs, weights, part, slots, 1.0)


def _add(inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, slots: torch.Tensor, scale: float) -> None:
    inputs, weights = inputs.to(output.dtype), weights.squeeze(1) if weights.dim() == 4 else weights
    for slot, tokens in _by_slot(slots[: len(inputs)]):
        if tokens is None:
            output.addmm_(inputs, weights[slot].to(output.dtype).t(), alpha=scale)
        else:
            made = inputs[tokens] @ weights[slot].to(output.dtype).t()
            output.index_add_(0, tokens, made, alpha=scale)


def _by_slot(slots: torch.Tensor) -> Iterator[tuple[int, torch.Tensor | None]]:
    """Each slot with its tokens' places; None: all of them."""
    present = slots.unique().tolist()
    for slot in present:
        if slot >= 0:
            yield slot, (slots == slot).nonzero()[:, 0] if len(present) > 1 else None
