"""PPO's two losses, against float64 references written token by token."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baton.config.policy_gradient import OffPolicyConfig
from baton.config.ppo import PpoConfig
from services.trainer.algorithms.losses import TokenBatch
from services.trainer.algorithms.ppo import ValueBatch, ppo_loss, value_loss

NUMBER = st.floats(-3, 3)
LOGPROB = st.floats(-4, -0.01)
POLICY_TOKENS = st.lists(st.tuples(LOGPROB, LOGPROB, NUMBER, st.floats(0, 1)), min_size=1, max_size=8)
VALUE_TOKENS = st.lists(st.tuples(NUMBER, NUMBER, NUMBER, st.floats(0, 1)), min_size=1, max_size=8)


@given(POLICY_TOKENS)
def test_the_policy_loss_is_the_papers(tokens: list[tuple[float, ...]]) -> None:
    policy, old, advantages, weights = (torch.tensor(column, dtype=torch.float64) for column in zip(*tokens, strict=True))
    batch = TokenBatch(old, old, advantages, weights, torch.zeros(len(old), dtype=torch.int64))
    config = PpoConfig(name="ppo", off_policy=OffPolicyConfig(importance_cap=None))
    loss = ppo_loss(policy, torch.zeros_like(old), batch, config).loss.item()
    expected = 0.0
    for new, before, advantage, weight in tokens:
        ratio = math.exp(new - before)
        expected -= weight * min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
    assert loss == pytest.approx(expected, abs=1e-9)


@given(VALUE_TOKENS, st.sampled_from([None, 0.1, 1.0]), st.booleans())
def test_value_loss_and_gradient_are_the_references(
    tokens: list[tuple[float, ...]], clip: float | None, clipped_only: bool
) -> None:
    values, old, returns, weights = (torch.tensor(column, dtype=torch.float64) for column in zip(*tokens, strict=True))
    values.requires_grad_()
    config = PpoConfig(name="ppo", cliprange_value=clip, clipped_value_only=clipped_only)
    output = value_loss(values, ValueBatch(old, returns, weights), config)
    output.loss.backward()
    expected, slopes, on_edge = 0.0, [], []
    for value, before, target, weight in tokens:
        near = value if clip is None else min(max(value, before - clip), before + clip)
        error, slope = (near - target) ** 2, near - target if near == value else 0.0
        plain = (value - target) ** 2
        on_edge.append((clip is not None and abs(abs(value - before) - clip) < 1e-9) or abs(plain - error) < 1e-9)
        if not clipped_only and plain > error:
            error, slope = plain, value - target
        expected += 0.5 * weight * error
        slopes.append(weight * slope)
    assert output.loss.item() == pytest.approx(expected, abs=1e-9)
    for mine, theirs, skip in zip(values.grad.tolist(), slopes, on_edge, strict=True):
        assert (skip and clip is not None) or mine == pytest.approx(theirs, abs=1e-9)


def test_a_value_beyond_the_clip_learns_only_with_the_pessimistic_loss() -> None:
    def gradient(clipped_only: bool) -> float:
        values = torch.tensor([2.0], requires_grad=True)
        batch = ValueBatch(torch.zeros(1), torch.zeros(1), torch.ones(1))
        output = value_loss(values, batch, PpoConfig(name="ppo", clipped_value_only=clipped_only))
        output.loss.backward()
        assert output.sums["value_clip_fraction"].item() == 1.0
        return values.grad.item()

    assert (gradient(True), gradient(False)) == (0.0, 2.0)
