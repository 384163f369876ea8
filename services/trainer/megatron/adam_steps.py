"""Loads a distributed optimizer's state with torch's Adam.

Torch's Adam counts steps in the state of each parameter. Megatron saves and restores that count by itself, but then looks
for it among the tensors of a checkpoint, where it is not, and gives up. It also gives all parameters one count in common, to
which the next step would add one for each of them.
"""

from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer


def give_each_parameter_its_count() -> None:
    """Makes every load of this process leave the count as it was restored, in each parameter's own state."""
    fill = DistributedOptimizer._set_main_param_and_optimizer_states

    def fill_with_the_count(self: Any, model_param: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
        group, place = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][place]]
        state["step"] = state["step"].clone()
        fill(self, model_param, {**state, **tensors})

    DistributedOptimizer._set_main_param_and_optimizer_states = fill_with_the_count
