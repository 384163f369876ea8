"""Truncated importance weights, the old policy of the ratio, and rejection of responses, against float64 references."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baton.config.policy_gradient import GrpoConfig, GspoConfig, OffPolicyConfig
from services.trainer.algorithms.grpo import grpo_loss
from services.trainer.algorithms.gspo import gspo_loss
from services.trainer.algorithms.losses import LossOutput, TokenBatch

Row = tuple[float, float, float, float]
"""A token: log-probabilities of the policy, of the old policy, and of what it was sampled from; and its advantage."""


def loss_of(
    rows: list[Row], off_policy: OffPolicyConfig, samples: list[int] | None = None, **options: float
) -> tuple[LossOutput, list[float]]:
    """(loss, gradient of each token) with equal weights, in float64. `samples`: each token's; all of one if left out."""
    policy, old, rollout, advantages = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    policy.requires_grad_()
    weights = torch.full_like(old, 1 / len(rows))
    batch = TokenBatch(rollout, old, advantages, weights, torch.tensor(samples or [0] * len(rows)))
    output = grpo_loss(policy, torch.zeros_like(old), batch, GrpoConfig(off_policy=off_policy, **options))
    output.loss.backward()
    return output, policy.grad.tolist()


def reference(row: Row, config: OffPolicyConfig, low: float = 0.8, high: float = 1.2) -> tuple[float, float]:
    """(loss, gradient) of one token: the clip looks at policy over old policy, the cap at policy over what was sampled."""
    policy, old, rollout, advantage = row
    cap = config.importance_cap or math.inf
    old = policy if config.old_policy == "step" else old
    ratio = math.exp(policy - old)
    if (advantage > 0 and ratio > high) or (advantage < 0 and ratio < low):
        return -advantage * min(math.exp(old - rollout), cap) * (high if advantage > 0 else low), 0.0
    importance = min(math.exp(policy - rollout), cap)
    return -advantage * importance, -advantage * importance


LOGPROB = st.floats(-3, -0.01)
ROWS = st.lists(
    st.tuples(LOGPROB, LOGPROB, LOGPROB, st.sampled_from([-2.0, -0.5, 0.0, 0.5, 2.0])), min_size=1, max_size=8
)
CONFIGS = st.builds(
    OffPolicyConfig, old_policy=st.sampled_from(["rollout", "step"]), importance_cap=st.sampled_from([None, 1.0, 2.0, 5.0])
)


@given(ROWS, CONFIGS)
def test_loss_and_gradient_are_the_references(rows: list[Row], config: OffPolicyConfig) -> None:
    output, gradient = loss_of(rows, config)
    expected = [reference(row, config) for row in rows]
    assert output.loss.item() == pytest.approx(sum(loss for loss, _ in expected) / len(rows), abs=1e-9)
    near_edge = [min(abs(math.exp(p - o) - edge) for edge in (0.8, 1.2)) < 1e-9 for p, o, _, _ in rows]
    for mine, (_, theirs), skip in zip(gradient, expected, near_edge, strict=True):
        assert skip or mine == pytest.approx(theirs / len(rows), abs=1e-9)


@pytest.mark.parametrize(("ratio", "weight"), [(0.5, 0.5), (1.5, 1.5), (9.0, 2.0)])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_against_the_policy_of_the_step_a_token_has_its_truncated_importance_weight_and_no_clip(
    ratio: float, weight: float, advantage: float
) -> None:
    rows = [(math.log(ratio) - 5, -7.0, -5.0, advantage)]
    output, gradient = loss_of(rows, OffPolicyConfig(old_policy="step", importance_cap=2.0))
    assert gradient == pytest.approx([-advantage * weight])
    assert output.sums["clip_fraction"].item() == 0.0
    assert output.sums["truncated_fraction"].item() == float(ratio > 2)


def test_a_likelier_token_of_a_bad_answer_is_truncated_where_the_clip_leaves_it_free() -> None:
    stale = [(math.log(9.0) - 5, -5.0, -5.0, -1.0)]
    _, gradient = loss_of(stale, OffPolicyConfig(importance_cap=2.0))
    _, unlimited = loss_of(stale, OffPolicyConfig(importance_cap=None))
    assert (gradient, unlimited) == (pytest.approx([2.0]), pytest.approx([9.0]))


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_top_p_shifts_no_clip_and_weighs_a_token_by_the_mass_that_was_kept(advantage: float) -> None:
    """Half of the mass was kept, so the sampled probability is twice the model's. The policy has not moved."""
    kept = 0.5
    output, gradient = loss_of([(-2.0, -2.0, -2.0 - math.log(kept), advantage)], OffPolicyConfig())
    assert gradient == pytest.approx([-advantage * kept])
    assert output.sums["clip_fraction"].item() == 0.0
    assert output.sums["ratio"].item() == pytest.approx(1.0)
    assert output.sums["mismatch_kl"].item() == pytest.approx(0.0)
    assert output.sums["sampling_weight"].item() == pytest.approx(kept)


@pytest.mark.parametrize(
    ("limits", "rejected"),
    [
        ({}, set()), ({"reject_above": 1.5}, {1, 3}), ({"reject_below": 0.9}, {2}),
        ({"reject_below": 0.9, "reject_above": 1.5}, {1, 2, 3}),
    ],
)
def test_a_response_is_left_out_by_the_geometric_mean_of_its_ratios(limits: dict[str, float], rejected: set[int]) -> None:
    drifts = [[0.5, -0.5], [math.log(4), 0.0], [-0.3, 0.0], [1.2]]  # geometric means 1, 2, 0.86, 3.3
    samples = [sample for sample, row in enumerate(drifts) for _ in row]
    rows = [(drift - 5, -5.0, -5.0, -1.0) for row in drifts for drift in row]
    output, gradient = loss_of(rows, OffPolicyConfig(importance_cap=None, **limits), samples, clip_ratio_low=0.9)
    for sample, (policy, old, *_), slope in zip(samples, rows, gradient, strict=True):
        assert slope == pytest.approx(0.0 if sample in rejected else math.exp(policy - old) / len(rows))
    share = sum(sample in rejected for sample in samples) / len(rows)
    assert output.sums["rejected_fraction"].item() == pytest.approx(share)


def test_a_gspo_response_is_truncated_as_a_whole() -> None:
    policy = torch.tensor([math.log(9.0) - 5, -5.0], dtype=torch.float64, requires_grad=True)  # geometric mean 3
    old = torch.full((2,), -5.0, dtype=torch.float64)
    batch = TokenBatch(old, old, -torch.ones_like(old), torch.full_like(old, 0.5), torch.zeros(2, dtype=torch.int64))
    gspo_loss(policy, torch.zeros_like(old), batch, GspoConfig(name="gspo")).loss.backward()
    assert policy.grad.tolist() == pytest.approx([1.0, 1.0])  # half of the cap of 2, for each of two tokens


@pytest.mark.parametrize("old_policy", ["rollout", "step"])
def test_a_token_outside_the_loss_changes_nothing_whatever_it_holds(old_policy: str) -> None:
    config = GrpoConfig(off_policy=OffPolicyConfig(old_policy=old_policy, reject_above=2.0))
    policy = torch.tensor([-1.0, -2.0], requires_grad=True)
    rollout = torch.tensor([-1.0, -torch.inf])
    batch = TokenBatch(rollout, rollout, torch.ones(2), torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.int64))
    output = grpo_loss(policy, torch.ones(2), batch, config)
    output.loss.backward()
    assert policy.grad.tolist() == [-1.0, 0.0]
    assert all(math.isfinite(value.item()) for value in output.sums.values())
