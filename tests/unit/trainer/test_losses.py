"""Token weights, group-relative advantages and the clipped loss, against a float64 reference written token by token."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baton.config.policy_gradient import GrpoConfig, OffPolicyConfig
from services.trainer.algorithms.grpo import group_advantages, grpo_loss
from services.trainer.algorithms.losses import TokenBatch, token_weights

MASKS = st.lists(st.lists(st.integers(0, 1), max_size=6), min_size=1, max_size=8).filter(lambda rows: any(map(any, rows)))
"""Per sample, per token: whether it enters the loss."""


def flat(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(mask_N, sample_of_N) of one micro-batch."""
    mask = torch.tensor([float(value) for row in rows for value in row])
    return mask, torch.tensor([i for i, row in enumerate(rows) for _ in row], dtype=torch.int64)


def one_sample(rollout: torch.Tensor, advantages: torch.Tensor, weights: torch.Tensor) -> TokenBatch:
    return TokenBatch(rollout, rollout, advantages, weights, torch.zeros(len(weights), dtype=torch.int64))


def total_of(rows: list[list[int]], normalization: str) -> float:
    return float(sum(map(sum, rows)) if normalization == "token" else sum(map(any, rows)))


@given(MASKS, st.integers(0, 8), st.sampled_from(["token", "sequence"]))
def test_weights_sum_to_one_over_the_global_batch_however_it_is_split(rows: list, cut: int, normalization: str) -> None:
    total = total_of(rows, normalization)
    parts = []
    for part in filter(None, (rows[:cut], rows[cut:])):
        mask_N, sample_of_N = flat(part)
        parts.append(token_weights(mask_N, sample_of_N, len(part), normalization=normalization, total=total))
    mask_N, sample_of_N = flat(rows)
    whole = token_weights(mask_N, sample_of_N, len(rows), normalization=normalization, total=total)
    assert torch.equal(torch.cat(parts), whole), "a split must not change any token's weight"
    assert float(whole.sum()) == pytest.approx(1.0, abs=1e-6)
    assert not whole[mask_N == 0].any()


def test_token_normalisation_gives_every_token_the_same_share_and_sequence_every_sample() -> None:
    mask_N, sample_of_N = flat([[1, 1, 1], [1]])
    assert token_weights(mask_N, sample_of_N, 2, normalization="token", total=4.0).tolist() == [0.25] * 4
    weights = token_weights(mask_N, sample_of_N, 2, normalization="sequence", total=2.0)
    assert weights.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])


@pytest.mark.parametrize("normalize", [True, False])
def test_advantages_are_relative_to_the_group_that_each_sample_carries(normalize: bool) -> None:
    rewards, mean, std = torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0.5, 0.5, 2.0]), torch.tensor([0.5, 0.5, 0.25])
    expected = [1.0, -1.0, 4.0] if normalize else [0.5, -0.5, 1.0]
    assert group_advantages(rewards, mean, std, GrpoConfig(std_normalization=normalize)).tolist() == pytest.approx(
        expected, rel=1e-5
    )


def test_a_group_of_equal_rewards_has_no_advantage() -> None:
    reward = torch.tensor([0.1])
    assert group_advantages(reward, reward, torch.zeros(1), GrpoConfig()).tolist() == [0.0]


def reference_loss(logprob: float, rollout: float, advantage: float, config: GrpoConfig) -> tuple[float, float, bool]:
    """(loss, d loss / d logprob, whether a clip is active) of one token, in Python floats."""
    ratio, cap = math.exp(logprob - rollout), config.off_policy.importance_cap or math.inf
    low, high = 1 - config.clip_ratio_low, 1 + config.clip_ratio_high
    plain, clipped = -advantage * ratio, -advantage * min(max(ratio, low), high)
    if config.dual_clip is not None and advantage < 0 and ratio > config.dual_clip:
        return -advantage * config.dual_clip, 0.0, True
    if plain < clipped:
        return clipped, 0.0, True
    return -advantage * min(ratio, cap), -advantage * min(ratio, cap), False


TOKEN = st.tuples(
    st.floats(-6, -0.01),
    st.floats(-6, -0.01),
    st.sampled_from([-2.0, -0.5, 0.0, 0.5, 2.0]),
    st.sampled_from([0.0, 0.1, 0.5]),
)
CONFIGS = st.builds(
    GrpoConfig,
    clip_ratio_low=st.sampled_from([0.0, 0.1, 0.2]),
    clip_ratio_high=st.sampled_from([0.0, 0.2, 0.28, 5.0]),
    dual_clip=st.sampled_from([None, 1.5, 3.0]),
    off_policy=st.builds(OffPolicyConfig, importance_cap=st.sampled_from([None, 1.0, 2.0])),
)


@given(st.lists(TOKEN, min_size=1, max_size=12), CONFIGS)
def test_loss_and_gradient_are_the_references(tokens: list[tuple[float, ...]], config: GrpoConfig) -> None:
    logprobs, rollout, advantages, weights = (
        torch.tensor(column, dtype=torch.float64) for column in zip(*tokens, strict=True)
    )
    logprobs.requires_grad_()
    output = grpo_loss(logprobs, torch.ones_like(logprobs), one_sample(rollout, advantages, weights), config)
    output.loss.backward()
    expected = [reference_loss(logprob, old, advantage, config) for logprob, old, advantage, _ in tokens]
    share = weights.tolist()
    assert output.loss.item() == pytest.approx(
        sum(loss * w for (loss, _, _), w in zip(expected, share, strict=True)), abs=1e-9
    )
    ratios = [math.exp(logprob - old) for logprob, old, _, _ in tokens]
    edges = (1 - config.clip_ratio_low, 1 + config.clip_ratio_high, config.dual_clip or 0.0)
    for n, (_, gradient, _) in enumerate(expected):
        if min(abs(ratios[n] - edge) for edge in edges) > 1e-9:  # on an edge either side's slope is right
            assert logprobs.grad[n].item() == pytest.approx(gradient * share[n], abs=1e-9)


@pytest.mark.parametrize(
    ("ratio", "advantage", "dual_clip"),
    [(1.5, 1.0, None), (0.5, -1.0, None), (4.0, -1.0, 3.0)],
    ids=["above the upper clip", "below the lower clip", "beyond the dual clip"],
)
def test_a_clipped_token_has_no_gradient_and_counts_as_clipped(
    ratio: float, advantage: float, dual_clip: float | None
) -> None:
    logprobs = torch.tensor([math.log(ratio) - 5.0], requires_grad=True)
    batch = one_sample(torch.tensor([-5.0]), torch.tensor([advantage]), torch.ones(1))
    output = grpo_loss(logprobs, torch.zeros(1), batch, GrpoConfig(dual_clip=dual_clip))
    output.loss.backward()
    assert logprobs.grad.item() == 0.0
    assert output.sums["clip_fraction"].item() == 1.0


@pytest.mark.parametrize(("ratio", "advantage"), [(0.5, 1.0), (1.5, -1.0), (1.1, 1.0)])
def test_a_token_that_moved_the_wrong_way_or_not_far_keeps_its_gradient(ratio: float, advantage: float) -> None:
    logprobs = torch.tensor([math.log(ratio) - 5.0], requires_grad=True)
    batch = one_sample(torch.tensor([-5.0]), torch.tensor([advantage]), torch.ones(1))
    output = grpo_loss(logprobs, torch.zeros(1), batch, GrpoConfig())
    output.loss.backward()
    assert logprobs.grad.item() == pytest.approx(-advantage * ratio)
    assert output.sums["clip_fraction"].item() == 0.0


def test_reported_sums_are_weighted_and_add_up_over_micro_batches() -> None:
    rng = np.random.default_rng(0)
    columns = [torch.tensor(rng.normal(size=10)) for _ in range(4)]
    weights = torch.tensor(rng.random(10))

    def sums(part: slice) -> dict[str, float]:
        logprobs, entropies, rollout, advantages = (column[part] for column in columns)
        output = grpo_loss(logprobs, entropies, one_sample(rollout, advantages, weights[part]), GrpoConfig())
        return {name: value.item() for name, value in output.sums.items()}

    whole, first, second = sums(slice(10)), sums(slice(4)), sums(slice(4, 10))
    assert {name: first[name] + second[name] for name in whole} == pytest.approx(whole)
    log_ratio = columns[0] - columns[2]
    assert whole["entropy"] == pytest.approx(float((columns[1] * weights).sum()))
    assert whole["mismatch_kl"] == pytest.approx(float(((log_ratio.exp() - 1 - log_ratio) * weights).sum()))
    assert whole["ratio"] == pytest.approx(float((log_ratio.exp() * weights).sum()))


@pytest.mark.parametrize("rollout", [-9.0, -1000.0, -math.inf])
@pytest.mark.parametrize("advantage", [-7.0, 0.0, 7.0])
def test_tokens_of_weight_zero_change_neither_loss_nor_gradient(rollout: float, advantage: float) -> None:
    """An unscored sample's tokens are in the row, but whatever they hold must not reach the sum."""
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    batch = one_sample(torch.tensor([-1.1, rollout]), torch.tensor([1.0, advantage]), torch.tensor([1.0, 0.0]))
    output = grpo_loss(logprobs, torch.ones(2), batch, GrpoConfig())
    output.loss.backward()
    assert output.loss.item() == pytest.approx(-math.exp(0.1), rel=1e-6)
    assert logprobs.grad[1].item() == 0.0
    assert all(math.isfinite(value.item()) for value in output.sums.values())
