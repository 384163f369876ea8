"""The divergence from the reference in GRPO's loss, by each estimator."""

import math

import pytest
import torch

from baton.config.policy_gradient import GrpoConfig
from services.trainer.algorithms.grpo import grpo_loss
from services.trainer.algorithms.losses import TokenBatch

ESTIMATES = {"k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(-d) - 1 + d}
SLOPES = {"k1": lambda d: 1.0, "k2": lambda d: d, "k3": lambda d: 1 - math.exp(-d)}
POLICY, REFERENCE, WEIGHTS = [-1.0, -2.0, -0.3], [-1.5, -1.0, -0.3], [0.5, 0.25, 0.25]


@pytest.mark.parametrize("estimator", ESTIMATES)
def test_loss_and_gradient_are_the_estimators(estimator: str) -> None:
    policy = torch.tensor(POLICY, dtype=torch.float64, requires_grad=True)
    old, weights = policy.detach().clone(), torch.tensor(WEIGHTS, dtype=torch.float64)
    reference = torch.tensor(REFERENCE, dtype=torch.float64)
    batch = TokenBatch(old, old, torch.zeros_like(old), weights, torch.zeros(3, dtype=torch.int64), reference)
    output = grpo_loss(policy, torch.zeros_like(old), batch, GrpoConfig(kl_coef=0.1, kl_estimator=estimator))
    output.loss.backward()
    tokens = [(new - before, weight) for new, before, weight in zip(POLICY, REFERENCE, WEIGHTS, strict=True)]
    assert output.loss.item() == pytest.approx(0.1 * sum(ESTIMATES[estimator](d) * weight for d, weight in tokens))
    assert policy.grad.tolist() == pytest.approx([0.1 * SLOPES[estimator](d) * weight for d, weight in tokens])
    assert output.sums["reference_kl"].item() == pytest.approx(sum(ESTIMATES["k3"](d) * weight for d, weight in tokens))


def test_a_token_outside_the_loss_adds_nothing_however_far_the_reference_is() -> None:
    policy = torch.tensor([-1.0, -1.0], requires_grad=True)
    old, weights, reference = policy.detach(), torch.tensor([1.0, 0.0]), torch.tensor([-1.0, -torch.inf])
    batch = TokenBatch(old, old, torch.zeros(2), weights, torch.zeros(2, dtype=torch.int64), reference)
    output = grpo_loss(policy, torch.zeros(2), batch, GrpoConfig(kl_coef=0.1))
    output.loss.backward()
    assert output.loss.item() == 0.0
    assert policy.grad.tolist() == [0.0, 0.0]
