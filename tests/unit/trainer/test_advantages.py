"""Generalised advantage estimation and its statistics, against the recursion in Python floats."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.algorithms.advantages import (
    explained_variance,
    generalized_advantages,
    mean_and_variance,
    whitened,
)  # fmt: skip


def recursion(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Advantages of one sample."""
    advantages, later = [0.0] * len(rewards), 0.0
    for t in reversed(range(len(rewards))):
        following = values[t + 1] if t + 1 < len(values) else 0.0
        later = rewards[t] + gamma * following - values[t] + gamma * lam * later
        advantages[t] = later
    return advantages


def packed(rows: list[list[tuple[float, float]]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rewards, values, sample of each token)."""
    tokens = [token for row in rows for token in row]
    rewards, values = (torch.tensor([token[i] for token in tokens], dtype=torch.float64) for i in (0, 1))
    return rewards, values, torch.tensor([i for i, row in enumerate(rows) for _ in row], dtype=torch.int64)


TOKEN = st.tuples(st.floats(-2, 2), st.floats(-2, 2))


SHARE = st.sampled_from([0.0, 0.9, 1.0])


@given(st.lists(st.lists(TOKEN, max_size=20), max_size=5), SHARE, SHARE)
def test_advantages_are_the_recursions_of_each_sample(rows: list, gamma: float, lam: float) -> None:
    advantages, returns = generalized_advantages(*packed(rows), gamma=gamma, lam=lam)
    expected = [a for row in rows for a in recursion([r for r, _ in row], [v for _, v in row], gamma, lam)]
    assert advantages.tolist() == pytest.approx(expected, abs=1e-9)
    values = [value for row in rows for _, value in row]
    assert returns.tolist() == pytest.approx([a + v for a, v in zip(expected, values, strict=True)], abs=1e-9)


def test_chatlearns_worked_example() -> None:
    row = list(zip([0.0, 0.0, 1.0, 0.0], [0.5, 0.2, -0.1, 0.0], strict=True))
    advantages, returns = generalized_advantages(*packed([row]), gamma=1.0, lam=0.95)
    assert advantages.tolist() == pytest.approx([0.40775, 0.745, 1.1, 0.0])
    assert returns.tolist() == pytest.approx([0.90775, 0.945, 1.0, 0.0])


def test_a_long_response_is_exact_too() -> None:
    rng = np.random.default_rng(0)
    row = list(zip(rng.normal(size=1000).tolist(), rng.normal(size=1000).tolist(), strict=True))
    advantages, _ = generalized_advantages(*packed([row, row[:3]]), gamma=0.99, lam=0.95)
    assert advantages[:1000].tolist() == pytest.approx(recursion(*map(list, zip(*row, strict=True)), 0.99, 0.95), abs=1e-9)


@pytest.mark.parametrize("zeros", [0, 7])
def test_whitened_values_have_mean_0_and_variance_1_over_all_parts(zeros: int) -> None:
    parts = [torch.randn(50).double() * 3 + 2, torch.randn(0).double(), torch.randn(20).double()]
    mean, variance = mean_and_variance(parts, lambda sums: sums, zeros=zeros)
    values = np.concatenate([*(part.numpy() for part in parts), np.zeros(zeros)])
    assert (mean, variance) == (pytest.approx(values.mean()), pytest.approx(values.var()))
    white = whitened(torch.from_numpy(values), mean, variance).numpy()
    assert (white.mean(), white.var()) == (pytest.approx(0, abs=1e-9), pytest.approx(1, abs=1e-6))


def test_equal_advantages_become_zero_and_nothing_has_no_statistics() -> None:
    equal = torch.full((3,), 0.1).double()
    assert whitened(equal, *mean_and_variance([equal], lambda sums: sums)).abs().max() < 1e-4
    assert mean_and_variance([], lambda sums: sums) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("error", "returns", "share"), [(0.0, 2.0, 1.0), (2.0, 2.0, 0.0), (4.0, 2.0, -1.0), (1.0, 0.0, 0.0)]
)
def test_a_critic_that_foresees_all_explains_all_variance(error: float, returns: float, share: float) -> None:
    assert explained_variance(error, returns) == share
