"""The random numbers of an optimizer step depend on the seed, the step and the rank, and on nothing that was drawn before:
a resumed trainer draws them as if it had not been interrupted."""

import os

import pytest

from baton.local.store import free_port
from ranks import run_ranks

pytestmark = pytest.mark.slow

STEPS = ((7, 3), (7, 4), (8, 3))
"""(seed, optimizer step)."""


def draws(rank: int, size: int, port: int) -> list[dict[tuple[int, int], tuple[float, float]]]:
    """Twice, in another order: for each of STEPS what is drawn outside of tensor-parallel regions, and inside."""
    import torch

    from services.trainer.megatron.parallel import Layout, seed_step

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    Layout.start(tensor=2, pipeline=1, device="cpu", timeout_s=120, seed=0)
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    found = []
    for order in (STEPS, STEPS[::-1]):
        found.append({})
        for seed, step in order:
            seed_step(seed, step)
            with get_cuda_rng_tracker().fork():
                inside = float(torch.rand(()))
            found[-1][seed, step] = float(torch.rand(())), inside
            torch.rand(100)
    return found


def test_they_are_the_same_whatever_came_before_and_others_for_each_step_seed_and_tensor_rank() -> None:
    one, other = run_ranks(draws, 2, free_port())
    for first, second in (one, other):
        assert first == second
        assert len(set(first.values())) == len(STEPS)
    for step in STEPS:
        assert one[0][step][0] == other[0][step][0], "outside of tensor-parallel regions ranks hold the same activations"
        assert one[0][step][1] != other[0][step][1]
