"""`algorithm`: how samples become a loss. One class per algorithm, told apart by `name`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from baton.config.base import NonNegativeFloat, PositiveFloat, Section
from baton.config.policy_gradient import GrpoConfig, GspoConfig
from baton.config.ppo import PpoConfig


class DpoConfig(Section):
    """Direct preference optimisation on pairs: of two consecutive samples the first is the chosen answer, the second the
    rejected one. A response's log-probability is the sum over its tokens."""

    name: Literal["dpo"]
    """Which algorithm this section configures."""

    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """`sigmoid`: DPO's logistic loss. `ipo`: the squared distance of the margin from 1 / (2 beta)."""

    beta: PositiveFloat = 0.1
    """How close the policy is kept to the reference; larger is closer. With `ipo` it is the paper's tau."""

    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Probability that a pair is labelled the wrong way round. `sigmoid` only; 0: none."""

    length_average: bool | None = None
    """Divide a response's log-probability ratio by its number of tokens. null: with `ipo`, whose authors do so, but
    not with `sigmoid`."""


class OnlineDpoConfig(Section):
    """DPO on the policy's own answers: in each group, every answer is preferred to every one with a smaller reward. A
    response's log-probability is the mean over its tokens."""

    name: Literal["online_dpo"]
    """Which algorithm this section configures."""

    beta: PositiveFloat = 0.1
    """How close the policy is kept to the reference; larger is closer."""


class SftConfig(Section):
    """Supervised fine-tuning: the cross-entropy of the responses' tokens."""

    name: Literal["sft"]
    """Which algorithm this section configures."""

    loss_normalization: Literal["token", "sequence"] = "token"
    """`token`: the mean over all response tokens of the step. `sequence`: the mean over samples of each one's
    mean."""


class RewardModelConfig(Section):
    """Training of a reward model on pairs by Bradley and Terry's loss: of two consecutive samples the first is the chosen
    answer, the second the rejected one."""

    name: Literal["reward_model"]
    """Which algorithm this section configures."""

    center_coef: NonNegativeFloat = 0.0
    """Weight of the squared sum of a pair's two scores, which keeps scores around zero. 0: not in the loss."""


def _named(value: Any) -> Any:
    return {"name": "grpo", **value} if isinstance(value, Mapping) else value


AlgorithmConfig = Annotated[
    GrpoConfig | GspoConfig | PpoConfig | DpoConfig | OnlineDpoConfig | SftConfig | RewardModelConfig,
    Field(discriminator="name"),
    BeforeValidator(_named),
]
"""A section without `name` is grpo's."""
