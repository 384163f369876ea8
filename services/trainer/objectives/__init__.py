"""From leased samples to an algorithm's losses: one class per family of algorithms. The arithmetic is in `algorithms/`."""

from baton.config.algorithm import AlgorithmConfig
from services.trainer.objectives.base import Objective
from services.trainer.objectives.group_relative import GroupRelativeObjective
from services.trainer.objectives.ppo import PpoObjective
from services.trainer.objectives.preference import DpoObjective, OnlineDpoObjective
from services.trainer.objectives.supervised import RewardModelObjective, SftObjective

_OBJECTIVES = {
    "grpo": GroupRelativeObjective, "gspo": GroupRelativeObjective, "ppo": PpoObjective, "dpo": DpoObjective,
    "online_dpo": OnlineDpoObjective, "sft": SftObjective, "reward_model": RewardModelObjective,
}  # fmt: skip


def objective_for(config: AlgorithmConfig) -> Objective:
    """What carries out the run file's `algorithm`."""
    return _OBJECTIVES[config.name](config)
