"""What a step does with the algorithm's state, on an engine that computes nothing."""

from types import SimpleNamespace

import pytest
import torch
from objective_samples import micro_batches, samples_of

from baton.config.ppo import PpoConfig
from services.trainer.megatron.engine import Update
from services.trainer.objectives import objective_for
from services.trainer.step import train_step

LAYOUT = SimpleNamespace(data_rank=0, data_size=1, tensor_rank=0, pipeline_rank=0, device=torch.device("cpu"))


class Engine:
    """A rank of an earlier pipeline stage, whose updates are skipped or not."""

    layout, share_prefix, pad_samples, head = LAYOUT, True, False, "logprobs"

    def __init__(self, *, skips: bool) -> None:
        self._skips = skips

    def clear(self) -> None:
        pass

    def forward_backward(self, rows, loss) -> list:
        return []

    def finish(self) -> float:
        return 1.0

    def apply(self, norm: float) -> Update:
        return Update(norm, 1e-6, self._skips)

    def sum_over_data_parallel(self, values: torch.Tensor) -> torch.Tensor:
        return values


@pytest.mark.parametrize(("skipped", "moves"), [(None, True), ("ppo_value", True), ("ppo_policy", False)])
def test_the_kl_coefficient_moves_with_the_policy_and_not_in_a_skipped_step(skipped: str | None, moves: bool) -> None:
    objective = objective_for(PpoConfig(name="ppo", fix_kl_coef=False, horizon=16))
    before = objective.state()
    engines = {role: Engine(skips=role == skipped) for role in ("ppo_policy", "ppo_value")}
    train_step(objective, engines, micro_batches(samples_of(), 4), tail="wrap")
    assert (objective.state() != before) == moves
