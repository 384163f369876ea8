"""PPO's reward of each token, the penalty for repetition, and the weight of the divergence."""

import pytest
import torch

from baton.config.ppo import PpoConfig
from services.trainer.algorithms.kl_control import next_kl_coef
from services.trainer.algorithms.token_rewards import ngram_penalty, token_rewards

OLD = [[-1.0, -2.0, -0.5], [], [-3.0]]
REFERENCE = [[-1.5, -1.0, -0.5], [], [-2.0]]
SCORES, PENALTIES = [1.0, 5.0, -3.0], [-0.5, 0.0, -0.25]


def rewards_of(config: PpoConfig, kl_coef: float = 0.1) -> tuple[list[float], list[float]]:
    sample_of = torch.tensor([i for i, row in enumerate(OLD) for _ in row])
    old, reference = (torch.tensor([x for row in rows for x in row]) for rows in (OLD, REFERENCE))
    scores, penalties = torch.tensor(SCORES), torch.tensor(PENALTIES)
    rewards, kl = token_rewards(scores, penalties, old, reference, sample_of, config, kl_coef=kl_coef)
    return rewards.tolist(), kl.tolist()


@pytest.mark.parametrize(
    "options",
    [
        {}, {"divide_by_length": False}, {"lm_coef": 0.5}, {"ngram_coef": 0.0}, {"cliprange_reward": 0.75},
        {"reward_bias": 0.5, "raw_reward_coeff": 2.0},
    ],
    ids=str,
)  # fmt: skip
def test_rewards_are_the_references(options: dict[str, float]) -> None:
    config = PpoConfig(name="ppo", **options)
    expected = []
    for old, reference, score, penalty in zip(OLD, REFERENCE, SCORES, PENALTIES, strict=True):
        length = len(old) if config.divide_by_length else 1
        row = [(-0.1 * (o - r) + config.lm_coef * r) / length for o, r in zip(old, reference, strict=True)]
        if row:
            clipped = min(max(score - config.reward_bias, -config.cliprange_reward), config.cliprange_reward)
            row[-1] += config.raw_reward_coeff * clipped + config.ngram_coef * penalty
        expected += row
    rewards, kl = rewards_of(config)
    assert rewards == pytest.approx(expected, abs=1e-6)
    assert kl == pytest.approx([-0.5, 0.0, -1.0])


def test_without_a_reference_only_the_last_token_earns() -> None:
    sample_of = torch.tensor([0, 0])
    config = PpoConfig(name="ppo", init_kl_coef=0.0)
    old = torch.tensor([-1.0, -1.0])
    rewards, kl = token_rewards(torch.tensor([2.0]), torch.zeros(1), old, None, sample_of, config, kl_coef=0)
    assert (rewards.tolist(), kl.tolist()) == ([0.0, 2.0], [0.0])


@pytest.mark.parametrize(
    ("tokens", "penalty"),
    [
        ([1, 2, 3, 1, 2, 3, 1, 2], -5.0), ([1, 2, 9, 9, 9, 1, 2, 7], -2 / 3), ([1, 2, 3, 4], 0.0), ([], 0.0), ([1], 0.0),
        ([7, 7, 7], -2.0),
    ],
)  # fmt: skip
def test_the_penalty_of_worked_examples(tokens: list[int], penalty: float) -> None:
    assert ngram_penalty(tokens) == pytest.approx(penalty)


@pytest.mark.parametrize(("kl", "after"), [(0.0, 0.0199488), (6.6, 0.0200256), (12.0, 0.0200512)])
def test_the_weight_of_the_divergence_is_adapted_as_in_the_worked_examples(kl: float, after: float) -> None:
    assert next_kl_coef(0.02, kl, 128, PpoConfig(name="ppo", fix_kl_coef=False)) == pytest.approx(after, abs=1e-9)


def test_a_fixed_weight_stays() -> None:
    assert next_kl_coef(0.02, 100.0, 128, PpoConfig(name="ppo")) == 0.02
