"""`algorithm`: how rewards become a loss. One class per algorithm, told apart by `name`."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from baton.config.base import NonNegativeFloat, Section


class GrpoConfig(Section):
    """Group relative policy optimisation: PPO's clipped loss with advantages relative to the prompt's own
    group."""

    name: Literal["grpo"] = "grpo"
    """Which algorithm this section configures."""

    clip_ratio_low: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """The probability ratio is clipped from below at 1 - clip_ratio_low."""

    clip_ratio_high: NonNegativeFloat = 0.2
    """The probability ratio is clipped from above at 1 + clip_ratio_high."""

    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bound on the loss of a token with a negative advantage, in multiples of that advantage. null: no
    bound."""

    std_normalization: bool = True
    """Divide a group's advantages by the standard deviation of its rewards."""

    loss_normalization: Literal["token", "sequence"] = "token"
    """`token`: the mean over all response tokens of the step. `sequence`: the mean over samples of each one's
    mean."""


class GspoConfig(Section):
    """Group sequence policy optimisation: as grpo, but a response has one probability ratio, the geometric mean of its
    tokens', which is clipped as a whole."""

    name: Literal["gspo"]
    """Which algorithm this section configures."""

    clip_ratio_low: Annotated[float, Field(ge=0, lt=1)] = 3e-4
    """The response's ratio is clipped from below at 1 - clip_ratio_low. Such ratios stay far closer to 1 than
    a token's."""

    clip_ratio_high: NonNegativeFloat = 4e-4
    """The response's ratio is clipped from above at 1 + clip_ratio_high."""

    std_normalization: bool = True
    """Divide a group's advantages by the standard deviation of its rewards."""

    loss_normalization: ClassVar[str] = "sequence"


def _named(value: Any) -> Any:
    return {"name": "grpo", **value} if isinstance(value, Mapping) else value


AlgorithmConfig = Annotated[GrpoConfig | GspoConfig, Field(discriminator="name"), BeforeValidator(_named)]
"""A section without `name` is grpo's."""
