"""`algorithm` with `name: grpo` or `gspo`, and what they share with PPO: the clip, and off-policy samples."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from baton.config.base import NonNegativeFloat, PositiveFloat, PositiveInt, Section

ClipLow = Annotated[float, Field(ge=0, lt=1)]
AtLeastOne = Annotated[float, Field(ge=1)]
DualClip = Annotated[float, Field(gt=1)]


class OffPolicyConfig(Section):
    """How samples are corrected that came from other numbers than the policy's present ones: older weights, another
    engine's rounding, or a distribution that was cut by top-p, top-k or penalties."""

    old_policy: Literal["rollout", "step"] = "rollout"
    """What the clipped ratio compares the policy with. `rollout`: the weights that sampled, as the rollout engine
    computed them. `step`: the policy at the start of the optimizer step; the ratio is then 1, and samples are
    corrected by their importance weight alone."""

    importance_cap: AtLeastOne | None = 2.0
    """Upper limit of a token's importance weight, policy over what sampled it (gspo: of a response's). null: no
    limit."""

    reject_below: PositiveFloat | None = None
    """Leave a response out if the geometric mean over its tokens of policy over sampling weights is below this.
    null: no limit."""

    reject_above: PositiveFloat | None = None
    """Leave a response out if that mean is above this. null: no limit."""


class PolicyGradientConfig(Section):
    """What the algorithms with a clipped ratio share."""

    clip_ratio_low: ClipLow = 0.2
    """The probability ratio is clipped from below at 1 - clip_ratio_low."""

    clip_ratio_high: NonNegativeFloat = 0.2
    """The probability ratio is clipped from above at 1 + clip_ratio_high."""

    off_policy: OffPolicyConfig = Field(default_factory=OffPolicyConfig)
    """Samples from older weights, or from another distribution."""


class GrpoConfig(PolicyGradientConfig):
    """Group relative policy optimisation: PPO's clipped loss with advantages relative to the prompt's own
    group."""

    name: Literal["grpo"] = "grpo"
    """Which algorithm this section configures."""

    dual_clip: DualClip | None = None
    """Bound on the loss of a token with a negative advantage, in multiples of that advantage. null: no
    bound."""

    std_normalization: bool = True
    """Divide a group's advantages by the standard deviation of its rewards."""

    loss_normalization: Literal["token", "sequence", "constant"] = "token"
    """`token`: the mean over all response tokens of the step. `sequence`: the mean over samples of each one's
    mean. `constant`: the sum over tokens, divided by the number of samples and by `normalization_length`."""

    normalization_length: PositiveInt | None = None
    """With `loss_normalization: constant`, the length that every response counts as having: the token limit, for
    example. null with the others."""

    kl_coef: NonNegativeFloat = 0.0
    """Weight in the loss of the policy's divergence from the reference. 0: not in the loss."""

    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Per token, with d = log policy - log reference. `k1`: d, whose gradient is zero on average. `k2`: d squared
    / 2, whose gradient is the divergence's. `k3`: exp(-d) - 1 + d, which is never negative."""

    kl_weighting: bool = False
    """Multiply each token's divergence by its probability ratio to the old policy, so that the gradient is the
    divergence's with `k1` and `k3` too, and for older samples."""


class GspoConfig(PolicyGradientConfig):
    """Group sequence policy optimisation: as grpo, but a response has one probability ratio, the geometric mean of its
    tokens', which is clipped as a whole."""

    name: Literal["gspo"]
    """Which algorithm this section configures."""

    clip_ratio_low: ClipLow = 3e-4
    """The response's ratio is clipped from below at 1 - clip_ratio_low. Such ratios stay far closer to 1 than
    a token's."""

    clip_ratio_high: NonNegativeFloat = 4e-4
    """The response's ratio is clipped from above at 1 + clip_ratio_high."""

    std_normalization: bool = True
    """Divide a group's advantages by the standard deviation of its rewards."""

    loss_normalization: ClassVar[str] = "sequence"
