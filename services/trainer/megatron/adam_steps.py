"""The step count of torch's Adam, which is in the state of each parameter, and the same in all of them.

Before the first update Adam has neither count nor moments; a checkpoint holds those that it begins with.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from megatron.core.optimizer.optimizer import ChainedOptimizer


def begin_where_nothing_is(optimizer: ChainedOptimizer) -> None:
    """Gives each parameter the moments and the count that Adam begins with, as far as it has none."""
    for part in optimizer.chained_optimizers:
        if part.is_stub_optimizer:  # of a stage that trains nothing
            continue
        part.init_state_fn(part.optimizer, part.config)
        for parameter, state in part.optimizer.state.items():
            state.setdefault("step", torch.zeros((), device=parameter.device))


def count_of(optimizer: ChainedOptimizer) -> int:
    """Updates so far. A collective: a pipeline stage that trains nothing has no count of its own."""
    counts: list[float] = [0.0] * dist.get_world_size()
    dist.all_gather_object(counts, max((float(state["step"]) for state in _states(optimizer)), default=0.0))
    return int(max(counts))


def set_count(optimizer: ChainedOptimizer, count: int) -> None:
    """Makes every parameter's count `count`."""
    for state in _states(optimizer):
        state["step"] = torch.full_like(state["step"], float(count))


def _states(optimizer: ChainedOptimizer) -> Iterator[dict[str, torch.Tensor]]:
    for part in optimizer.chained_optimizers:
        if not part.is_stub_optimizer:
            yield from part.optimizer.state.values()
