"""The sequence-level clipped loss, against a float64 reference written response by response."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baton.config.policy_gradient import GspoConfig, OffPolicyConfig
from services.trainer.algorithms.gspo import gspo_loss
from services.trainer.algorithms.losses import TokenBatch, token_weights

TOKEN = st.tuples(st.floats(-4, -0.01), st.floats(-4, -0.01), st.integers(0, 1))
"""Log-probability, the sampled one, and whether the token enters the loss."""
RESPONSES = st.lists(
    st.tuples(st.sampled_from([-2.0, -0.5, 0.0, 1.5]), st.lists(TOKEN, max_size=5)), min_size=1, max_size=6
).filter(lambda rows: any(mask for _, tokens in rows for _, _, mask in tokens))
CONFIGS = st.builds(
    GspoConfig,
    name=st.just("gspo"),
    clip_ratio_low=st.sampled_from([0.0, 3e-4, 0.3]),
    clip_ratio_high=st.sampled_from([0.0, 4e-4, 0.5]),
    off_policy=st.builds(OffPolicyConfig, importance_cap=st.sampled_from([None, 1.0, 2.0])),
)


def loss_of(rows: list, config: GspoConfig) -> tuple[float, torch.Tensor, dict[str, float]]:
    """(loss, its gradient by each token's log-probability, reported sums) of responses in one micro-batch, in float64."""
    tokens = [(*token, advantage, sample) for sample, (advantage, row) in enumerate(rows) for token in row]
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*tokens, strict=True)]
    logprobs, rollout, mask, advantages, sample_of = columns
    total = sum(any(mask for _, _, mask in row) for _, row in rows)
    weights = token_weights(mask.float(), sample_of.long(), len(rows), normalization="sequence", total=total).double()
    logprobs.requires_grad_()
    batch = TokenBatch(rollout, rollout, advantages, weights, sample_of.long())
    output = gspo_loss(logprobs, torch.ones_like(mask), batch, config)
    output.loss.backward()
    return output.loss.item(), logprobs.grad, {name: value.item() for name, value in output.sums.items()}


def reference(rows: list, config: GspoConfig) -> tuple[float, list[float], bool]:
    """(loss, gradients, whether a ratio lies on a clip's edge), in Python floats."""
    scored = [row for _, row in rows if any(mask for _, _, mask in row)]
    low, high = 1 - config.clip_ratio_low, 1 + config.clip_ratio_high
    loss, gradients, on_edge = 0.0, [], False
    for advantage, row in rows:
        entering = [new - old for new, old, mask in row if mask]
        if not entering:
            gradients += [0.0] * len(row)
            continue
        ratio = math.exp(sum(entering) / len(entering))
        on_edge |= min(abs(ratio - low), abs(ratio - high)) < 1e-9
        limited = -advantage * min(ratio, config.off_policy.importance_cap or math.inf)
        plain, clipped = -advantage * ratio, -advantage * min(max(ratio, low), high)
        loss += (limited if plain >= clipped else clipped) / len(scored)
        slope = limited if plain >= clipped else 0.0
        gradients += [slope / len(entering) / len(scored) if mask else 0.0 for _, _, mask in row]
    return loss, gradients, on_edge


@given(RESPONSES, CONFIGS)
def test_loss_and_gradient_are_the_references(rows: list, config: GspoConfig) -> None:
    loss, gradient, _ = loss_of(rows, config)
    expected, gradients, on_edge = reference(rows, config)
    assert loss == pytest.approx(expected, abs=1e-6)
    if not on_edge:  # there either side's slope is right
        assert gradient.tolist() == pytest.approx(gradients, abs=1e-6)


def test_a_response_is_clipped_as_a_whole_or_not_at_all() -> None:
    """One token moved far, the other back: each would be clipped alone, the response is not."""
    config = GspoConfig(name="gspo", clip_ratio_low=0.2, clip_ratio_high=0.2)
    even, moved = [(-1.0, -2.0, 1), (-2.0, -1.0, 1)], [(-1.0, -2.0, 1), (-1.0, -1.1, 1)]
    _, gradient, sums = loss_of([(1.0, even), (1.0, moved)], config)
    assert gradient.tolist() == pytest.approx([-0.25, -0.25, 0.0, 0.0])
    assert sums["clip_fraction"] == pytest.approx(0.5)


def test_a_token_of_weight_zero_with_an_infinite_ratio_changes_nothing() -> None:
    loss, gradient, sums = loss_of([(1.0, [(-1.0, -1.0, 1), (-1.0, -math.inf, 0)])], GspoConfig(name="gspo"))
    assert loss == pytest.approx(-1.0)
    assert gradient.tolist() == pytest.approx([-1.0, 0.0])
    assert all(math.isfinite(value) for value in sums.values())
