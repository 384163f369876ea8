"""DPO, IPO, online DPO and the reward model's loss, against float64 references written pair by pair."""

import math
from itertools import chain, permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baton.config.algorithm import DpoConfig, OnlineDpoConfig, RewardModelConfig
from services.trainer.algorithms.dpo import PreferenceBatch, dpo_loss
from services.trainer.algorithms.losses import LossOutput
from services.trainer.algorithms.online_dpo import OnlineDpoBatch, online_dpo_loss, ordered_pairs
from services.trainer.algorithms.reward_model import reward_model_loss

LOGPROB = st.floats(-4, -0.01)
RESPONSE = st.lists(st.tuples(LOGPROB, LOGPROB, st.integers(0, 1)), max_size=5)
"""Per token: log-probability of the policy, of the reference, and whether it counts."""


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > -30 else x


def columns(rows: list[list[tuple]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(policy, reference, mask, sample of each token); the policy's can have a gradient."""
    table = np.array([token for row in rows for token in row], np.float64).reshape(-1, 3)
    sample_of = torch.tensor([i for i, row in enumerate(rows) for _ in row], dtype=torch.int64)
    policy, reference, mask = torch.from_numpy(table).unbind(1)
    return policy.clone().requires_grad_(), reference, mask, sample_of


def log_ratio(row: list[tuple[float, float, int]], average: bool) -> float:
    counted = [policy - reference for policy, reference, mask in row if mask]
    return sum(counted) / (max(len(counted), 1) if average else 1)


def dpo_of(rows: list, config: DpoConfig) -> tuple[LossOutput, torch.Tensor]:
    policy, reference, mask, sample_of = columns(rows)
    weights = torch.full((len(rows) // 2,), 2 / len(rows), dtype=torch.float64)
    output = dpo_loss(policy, PreferenceBatch(reference, mask, sample_of, weights), config)
    output.loss.backward()
    return output, policy.grad


PAIRS = st.lists(st.tuples(RESPONSE, RESPONSE), min_size=1, max_size=4).map(lambda pairs: list(chain.from_iterable(pairs)))
DPO = st.builds(
    DpoConfig, name=st.just("dpo"), loss=st.sampled_from(["sigmoid", "ipo"]), beta=st.sampled_from([0.1, 0.5]),
    label_smoothing=st.sampled_from([0.0, 0.2]), length_average=st.sampled_from([None, True, False]),
)  # fmt: skip


@given(PAIRS, DPO)
def test_dpo_and_ipo_are_the_papers(rows: list, config: DpoConfig) -> None:
    average = (config.loss == "ipo") if config.length_average is None else config.length_average
    losses, accuracy, margins = [], [], []
    for chosen, rejected in zip(rows[0::2], rows[1::2], strict=True):
        z = log_ratio(chosen, average) - log_ratio(rejected, average)
        smooth = config.label_smoothing
        logistic = -(1 - smooth) * log_sigmoid(config.beta * z) - smooth * log_sigmoid(-config.beta * z)
        losses.append(logistic if config.loss == "sigmoid" else (z - 1 / (2 * config.beta)) ** 2)
        margin = log_ratio(chosen, False) - log_ratio(rejected, False)
        margins.append(config.beta * margin)
        accuracy.append(margin > 0)
    output, _ = dpo_of(rows, config)
    assert output.loss.item() == pytest.approx(np.mean(losses), abs=1e-9)
    assert output.sums["margin"].item() == pytest.approx(np.mean(margins), abs=1e-9)
    if min(map(abs, margins)) > 1e-9:
        assert output.sums["accuracy"].item() == pytest.approx(np.mean(accuracy))


def test_the_gradient_lifts_the_chosen_response_and_lowers_the_rejected_one() -> None:
    output, gradient = dpo_of([[(-1.0, -1.0, 1), (-1.0, -1.0, 0)], [(-2.0, -2.0, 1)]], DpoConfig(name="dpo"))
    assert output.loss.item() == pytest.approx(math.log(2))
    assert gradient.tolist() == pytest.approx([-0.05, 0.0, 0.05])


def test_an_empty_response_has_log_probability_zero() -> None:
    output, gradient = dpo_of([[(-1.0, -2.0, 1)], []], DpoConfig(name="dpo"))
    assert output.loss.item() == pytest.approx(-log_sigmoid(0.1))
    assert torch.isfinite(gradient).all()


GROUP = st.lists(st.tuples(RESPONSE, st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=4)


@given(st.lists(GROUP, min_size=1, max_size=4))
def test_online_dpo_compares_all_ordered_pairs_of_each_group(groups: list) -> None:
    """A group without a strict pair, wherever it stands, leaves the others alone: in ChatLearn it spoiled those after it."""
    rows = [row for group in groups for row, _ in group]
    rewards = torch.tensor([reward for group in groups for _, reward in group], dtype=torch.float64)
    group_of = torch.tensor([number for number, group in enumerate(groups) for _ in group])
    policy, reference, mask, sample_of = columns(rows)
    batch = OnlineDpoBatch(reference, mask, sample_of, len(rows), ordered_pairs(rewards, group_of, len(groups)))
    loss = online_dpo_loss(policy, batch, OnlineDpoConfig(name="online_dpo", beta=0.3)).loss
    expected = 0.0
    for group in groups:
        pairs = [
            -log_sigmoid(0.3 * (log_ratio(better, True) - log_ratio(worse, True)))
            for (better, high), (worse, low) in permutations(group, 2)
            if high > low
        ]
        expected += sum(pairs) / max(len(pairs), 1) / len(groups)
    assert loss.item() == pytest.approx(expected, abs=1e-9)


def test_groups_of_one_and_equal_rewards_make_no_pair_and_a_zero_loss_with_a_gradient() -> None:
    policy, reference, mask, sample_of = columns([[(-1.0, -2.0, 1)]] * 3)
    pairs = ordered_pairs(torch.tensor([1.0, 0.5, 0.5]), torch.tensor([0, 1, 1]), 2.0)
    batch = OnlineDpoBatch(reference, mask, sample_of, 3, pairs)
    output = online_dpo_loss(policy, batch, OnlineDpoConfig(name="online_dpo"))
    output.loss.backward()
    assert (output.loss.item(), policy.grad.tolist()) == (0.0, [0.0, 0.0, 0.0])
    assert output.sums["paired_fraction"].item() == 0.0


def test_a_sample_that_is_left_out_is_in_no_pair() -> None:
    pairs = ordered_pairs(torch.tensor([0.0, 9.0, 1.0]), torch.tensor([0, -1, 0]), 1.0)
    assert (pairs.better_P.tolist(), pairs.worse_P.tolist(), pairs.weights_P.tolist()) == ([2], [0], [1.0])


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=6), st.sampled_from([0.0, 0.01]))
def test_the_reward_models_loss_is_bradley_and_terrys(pairs: list[tuple[float, float]], center: float) -> None:
    scores = torch.tensor([score for pair in pairs for score in pair], dtype=torch.float64)
    weights = torch.full((len(pairs),), 1 / len(pairs), dtype=torch.float64)
    output = reward_model_loss(scores, weights, RewardModelConfig(name="reward_model", center_coef=center))
    losses = [-log_sigmoid(chosen - rejected) + center * (chosen + rejected) ** 2 for chosen, rejected in pairs]
    assert output.loss.item() == pytest.approx(np.mean(losses), abs=1e-9)
    assert output.sums["accuracy"].item() == pytest.approx(np.mean([chosen > rejected for chosen, rejected in pairs]))
    assert output.sums["margin"].item() == pytest.approx(np.mean([chosen - rejected for chosen, rejected in pairs]))
