"""Dropout on an adapter's inputs, from random states of its own that Megatron keeps and restores where it computes again."""

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch.nn import functional

_ALIKE, _APART = "lora-inputs-alike", "lora-inputs-apart"
_FIRST = 1_000_003
"""Added to the run's seed, so that the states differ from Megatron's own."""


def start_dropout(seed: int) -> None:
    """Makes the states, unless they are there: one that tensor-parallel ranks have in common, and one of each rank."""
    tracker = get_cuda_rng_tracker()
    if _ALIKE in tracker.get_states():
        return
    copy, world = dist.get_rank() - parallel_state.get_tensor_model_parallel_rank(), dist.get_world_size()
    tracker.add(_ALIKE, seed + _FIRST + copy)
    tracker.add(_APART, seed + _FIRST + world + dist.get_rank())


def dropped(x: torch.Tensor, probability: float, *, alike: bool) -> torch.Tensor:
    """x with some elements zero and the others larger; `alike`: the same ones on all tensor-parallel ranks."""
    with get_cuda_rng_tracker().fork(_ALIKE if alike else _APART):
        return functional.dropout(x, probability)
