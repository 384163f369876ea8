"""The weight of the divergence from the reference in PPO's reward: fixed, or adapted (Ziegler et al. 2019,
arXiv:1909.08593)."""

from baton.config.ppo import PpoConfig


def next_kl_coef(coefficient: float, kl: float, samples: float, config: PpoConfig) -> float:
    """The weight after a step of so many samples whose divergence, summed over a response, was `kl` on average.

    ChatLearn took the update's own divergence, per token, for `kl`; that is far below any target that a response's
    divergence has, so its weight only fell.
    """
    if config.fix_kl_coef:
        return coefficient
    error = min(max(kl / config.target - 1, -0.2), 0.2)
    return coefficient * (1 + error * samples / config.horizon)
