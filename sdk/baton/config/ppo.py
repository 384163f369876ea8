"""`algorithm` with `name: ppo`. Options that ChatLearn has too keep its names."""

from typing import Literal

from baton.config.base import Fraction, NonNegativeFloat, PositiveFloat
from baton.config.policy_gradient import DualClip, PolicyGradientConfig


class PpoConfig(PolicyGradientConfig):
    """Proximal policy optimisation with a critic: rewards per token, advantages by generalised advantage estimation,
    a clipped policy loss and a clipped value loss."""

    name: Literal["ppo"]
    """Which algorithm this section configures."""

    dual_clip: DualClip | None = None
    """Bound on the loss of a token with a negative advantage, in multiples of that advantage. null: no
    bound."""

    loss_normalization: Literal["token", "sequence"] = "token"
    """`token`: the mean over all response tokens of the step. `sequence`: the mean over samples of each one's
    mean. Of both losses."""

    gamma: Fraction = 1.0
    """Discount of the next token's value."""

    lam: Fraction = 0.95
    """Lambda of the advantage estimation: 0 trusts the critic, 1 the rewards."""

    whiten_advantages: bool = True
    """Shift and scale the advantages of a step's tokens to mean 0 and variance 1."""

    whiten_padding: bool = False
    """Count zeros into that mean and variance as if every response were padded to the step's longest: ChatLearn
    does."""

    cliprange_value: PositiveFloat | None = 0.1
    """How far a value may move from the one at the rollout before it is clipped. null: no clip."""

    clipped_value_only: bool = True
    """Use the clipped value's squared error alone, as ChatLearn does. false: the larger one of the clipped value's and
    the value's own, as PPO does."""

    init_kl_coef: NonNegativeFloat = 0.02
    """Weight in the reward of each token's log-probability ratio to the reference: where `fix_kl_coef` is false, the
    first one. 0 without `lm_coef`: no reference is needed."""

    fix_kl_coef: bool = True
    """Keep that weight. false: adapt it, so that the divergence comes to `target`."""

    target: PositiveFloat = 6.0
    """Divergence from the reference that the weight is adapted to: summed over a response, mean over samples."""

    horizon: PositiveFloat = 10000.0
    """Samples in which the weight is adapted by about its own size; larger is slower."""

    divide_by_length: bool = True
    """Divide each token's divergence and language-model reward by the number of the response's tokens, as ChatLearn
    does."""

    lm_coef: float = 0.0
    """Weight in the reward of each token's log-probability under the reference. 0: none."""

    reward_bias: float = 0.0
    """Subtracted from a response's reward."""

    cliprange_reward: PositiveFloat = 100.0
    """Limit on that difference, either way."""

    raw_reward_coeff: float = 1.0
    """Weight of the response's reward, which its last token gets."""

    ngram_coef: float = 1.0
    """Weight of the penalty for repeated pairs and triples of tokens, which the last token gets. 0: none."""
