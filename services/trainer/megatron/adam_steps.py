"""Saves and loads the state of torch's Adam, which counts steps in the state of each parameter.

Megatron saves and restores that count by itself, but a distributed optimizer then looks for it among the tensors of a
checkpoint, where it is not, and gives up. It also gives all parameters one count in common, to which the next step would add
one for each of them. Before the first update Adam has neither count nor moments, without which Megatron can neither save nor
load; and it leaves out a count of zero.
"""

from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import ChainedOptimizer


def give_each_parameter_its_count() -> None:
    """Makes every load of this process leave the count as it was restored, in each parameter's own state."""
    fill = DistributedOptimizer._set_main_param_and_optimizer_states

    def fill_with_the_count(self: Any, model_param: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
        group, place = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][place]]
        state["step"] = state["step"].clone()
        fill(self, model_param, {**state, **tensors})

    DistributedOptimizer._set_main_param_and_optimizer_states = fill_with_the_count


def begin_where_nothing_is(optimizer: ChainedOptimizer) -> None:
    """Gives each parameter the moments and the count that Adam begins with, as far as it has none."""
    for part in optimizer.chained_optimizers:
        if part.is_stub_optimizer:  # of a stage that trains nothing
            continue
        part.init_state_fn(part.optimizer, part.config)
        for parameter, state in part.optimizer.state.items():
            state.setdefault("step", torch.zeros((), device=parameter.device))


def with_count(state: dict[str, Any]) -> dict[str, Any]:
    """The sharded state of an optimizer, with the count if Megatron left it out because it is zero."""
    inner = state.get("optimizer", state)
    if "state" in inner:  # a distributed optimizer's count is in its parameter groups
        inner["state"].setdefault("common_step", torch.zeros(()))
    return state
