"""Dropout on an adapter's inputs, from random states of its own that Megatron keeps and restores where it computes again.

They begin where the process was seeded (`Layout.start`), so that a process that is seeded again by Megatron's
`model_parallel_cuda_manual_seed` repeats them.
"""

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch.nn import functional

_ALIKE, _APART = "lora-inputs-alike", "lora-inputs-apart"
_FIRST = 1_000_003
"""Added to the seed, so that the states differ from Megatron's own."""


def dropped(x: torch.Tensor, probability: float, *, alike: bool) -> torch.Tensor:
    """x with some elements zero and the others larger; `alike`: the same ones on all tensor-parallel ranks."""
    tracker = get_cuda_rng_tracker()
    if _ALIKE not in tracker.get_states():
        tracker.set_states(tracker.get_states() | _fresh(x.device))
    with tracker.fork(_ALIKE if alike else _APART):
        return functional.dropout(x, probability)


def _fresh(device: torch.device) -> dict[str, torch.Tensor]:
    """One state that the ranks of a tensor-parallel group have in common, and one of this rank's own."""
    first = _FIRST + (torch.cuda if device.type == "cuda" else torch).initial_seed()
    group = dist.get_rank() - parallel_state.get_tensor_model_parallel_rank()  # its first rank
    seeds = {_ALIKE: first + group, _APART: first + dist.get_world_size() + dist.get_rank()}
    return {name: torch.Generator(device).manual_seed(seed).get_state() for name, seed in seeds.items()}
