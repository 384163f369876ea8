"""PPO's reward of each token: nearness to the reference, and on the last token what the response is worth.

    r_t = (-beta (log old policy - log reference) + lm_coef log reference) / L
    r_L += raw_reward_coeff clip(score - reward_bias, +-cliprange_reward) + ngram_coef ngram_penalty

Shape suffixes: N actions, sample after sample; S samples. L is the number of a sample's actions.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch

from baton.config.ppo import PpoConfig
from services.trainer.algorithms.losses import sample_sums


class TokenRewards(NamedTuple):
    """Float64: rewards [N]; each sample's divergence from the reference, summed over its actions [S]."""

    rewards_N: torch.Tensor
    kl_S: torch.Tensor


def token_rewards(
    scores_S: torch.Tensor, penalties_S: torch.Tensor, old_logprobs_N: torch.Tensor,
    reference_logprobs_N: torch.Tensor | None, sample_of_N: torch.Tensor, config: PpoConfig, *, kl_coef: float,
) -> TokenRewards:  # fmt: skip
    """Rewards of all actions. Samples without actions get none; without a reference nothing is taken for distance."""
    samples = len(scores_S)
    reference_N = old_logprobs_N if reference_logprobs_N is None else reference_logprobs_N
    log_ratio_N = old_logprobs_N.double() - reference_N.double()
    rewards_N = -kl_coef * log_ratio_N + config.lm_coef * reference_N.double()
    lengths_S = torch.bincount(sample_of_N, minlength=samples)
    if config.divide_by_length:
        rewards_N = rewards_N / lengths_S[sample_of_N]
    limit = config.cliprange_reward
    last_S = config.raw_reward_coeff * (scores_S.double() - config.reward_bias).clamp(-limit, limit)
    last_S = last_S + config.ngram_coef * penalties_S.double()
    acting_S = lengths_S > 0
    rewards_N[(lengths_S.cumsum(0) - 1)[acting_S]] += last_S[acting_S]
    return TokenRewards(rewards_N, sample_sums(log_ratio_N, sample_of_N, samples))


def ngram_penalty(tokens: Sequence[int]) -> float:
    """At most 0: for pairs and for triples of tokens, minus how often the most frequent one occurs, over how far apart its
    occurrences are (from the end of one to the start of the next, at least 1, on average). Of several that are equally
    frequent the first counts; one that occurs once costs nothing."""
    penalty = 0.0
    for n in (2, 3):
        places: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for start in range(len(tokens) - n + 1):
            places[tuple(tokens[start : start + n])].append(start)
        if (found := max(places.values(), key=len, default=[])) and len(found) > 1:
            gap = (found[-1] - found[0]) / (len(found) - 1)
            penalty -= len(found) / max(gap - n, 1.0)
    return penalty
