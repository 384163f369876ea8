"""PPO from samples to losses, against one numpy reference; its adaptive weight; and which old policy a sample has."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from objective_samples import losses_of, micro_batches, plan_of, samples_of, token_scores

from baton.config.ppo import PpoConfig
from baton.samples import Ragged, Samples
from services.trainer.algorithms.token_rewards import ngram_penalty
from services.trainer.objectives import objective_for
from services.trainer.objectives.base import old_logprobs


def with_mask(samples: Samples) -> Samples:
    """Some tokens are a tool's: no actions, wherever they stand."""
    mask = np.random.default_rng(1).integers(0, 2, len(samples.response_ids.values)).astype(np.uint8)
    return replace(samples, loss_mask=Ragged(mask, samples.response_ids.lengths))


def reference(samples: Samples, config: PpoConfig) -> dict[str, float]:
    """The reported losses and statistics, in float64, sample by sample."""
    columns = (samples.rollout_logprobs, samples.reference_logprobs, samples.values, samples.token_rewards)
    masks = samples.loss_mask.rows()
    policy = np.split(token_scores(samples).logprobs_N.double().numpy(), samples.response_ids.offsets[1:-1])
    advantages, returns, old_values, logprobs, olds, kls = [], [], [], [], [], []
    for row, mask in enumerate(masks):
        acts = mask > 0
        old, base, values, extra = (column.rows()[row][acts].astype(np.float64) for column in columns)
        kls.append((old - base).sum())
        if not acts.any():
            continue
        rewards = -config.init_kl_coef * (old - base) / len(old) + extra
        rewards[-1] += samples.rewards[row] + config.ngram_coef * ngram_penalty(samples.response_ids.rows()[row].tolist())
        advantage, later = np.zeros(len(old)), 0.0
        for t in reversed(range(len(old))):
            following = values[t + 1] if t + 1 < len(old) else 0.0
            later = rewards[t] + config.gamma * following - values[t] + config.gamma * config.lam * later
            advantage[t] = later
        advantages.append(advantage)
        returns.append(advantage + values)
        old_values.append(values)
        olds.append(old)
        logprobs.append(policy[row][acts])
    advantages, returns, old_values, logprobs, olds = map(np.concatenate, (advantages, returns, old_values, logprobs, olds))
    padding = 0
    if config.whiten_padding:
        lengths = [int((mask > 0).sum()) for mask in masks]
        padding = len(lengths) * max(lengths) - sum(lengths)
    all_advantages = np.concatenate([advantages, np.zeros(padding)])
    white = (advantages - all_advantages.mean()) / np.sqrt(all_advantages.var() + 1e-8)
    ratio = np.exp(logprobs - olds)
    value = np.clip(logprobs, old_values - config.cliprange_value, old_values + config.cliprange_value)
    return {
        "loss": np.maximum(-white * ratio, -white * np.clip(ratio, 0.8, 1.2)).mean(),
        "value_loss": 0.5 * ((value - returns) ** 2).mean(),
        "sequence_kl": float(np.mean(kls)),
        "explained_variance": 1 - (returns - old_values).var() / returns.var(),
        "return_mean": returns.mean(),
        "value_mean": old_values.mean(),
    }


@pytest.mark.parametrize("whiten_padding", [False, True])
def test_losses_and_statistics_are_the_references(whiten_padding: bool) -> None:
    config = PpoConfig(name="ppo", gamma=0.9, whiten_padding=whiten_padding, off_policy={"importance_cap": None})
    samples = with_mask(samples_of())
    batches = micro_batches(samples, 2)
    plan = plan_of(objective_for(config), batches)
    found = losses_of(plan, batches) | dict(plan.metrics)
    expected = reference(samples, config)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6, rel=1e-5)
    assert found["kl_coef"] == 0.02


def test_the_weight_of_the_divergence_goes_on_from_step_to_step_and_from_its_state() -> None:
    config = PpoConfig(name="ppo", fix_kl_coef=False, target=0.1, horizon=100)
    objective, batches = objective_for(config), micro_batches(samples_of(), 4)
    first = plan_of(objective, batches)
    kl = first.metrics["sequence_kl"]
    step = 1 + np.clip(kl / 0.1 - 1, -0.2, 0.2) * 8 / 100
    assert objective.state() == {"kl_coef": 0.02}, "planning a step is not taking it"
    objective.advance(first.totals)
    assert objective.state()["kl_coef"] == pytest.approx(0.02 * step)
    again = objective_for(config)
    again.restore(objective.state())
    assert plan_of(again, batches).metrics["kl_coef"] == objective.state()["kl_coef"]


def test_the_weight_is_adapted_to_all_samples_of_an_update_and_to_none_if_nothing_was_scored() -> None:
    config, samples = PpoConfig(name="ppo", fix_kl_coef=False, target=0.3, horizon=100), samples_of()
    whole, parts = objective_for(config), objective_for(config)
    whole.advance(plan_of(whole, micro_batches(samples, 4)).totals)
    totals = [plan_of(parts, micro_batches(samples.take(rows), 2)).totals for rows in ([0, 1], range(2, 8))]
    parts.advance({name: totals[0][name] + totals[1][name] for name in totals[0]})
    assert parts.state()["kl_coef"] == pytest.approx(whole.state()["kl_coef"], rel=1e-9) != 0.02
    nothing = replace(samples, reward_status=np.zeros(len(samples), np.uint8))
    parts.advance(plan_of(parts, micro_batches(nothing, 4)).totals)
    assert parts.state()["kl_coef"] == pytest.approx(whole.state()["kl_coef"], rel=1e-9)


def test_without_a_divergence_in_the_reward_no_reference_is_needed() -> None:
    assert "reference_logprobs" not in objective_for(PpoConfig(name="ppo", init_kl_coef=0.0)).columns
    assert "reference_logprobs" in objective_for(PpoConfig(name="ppo")).columns


@pytest.mark.parametrize(
    ("temperature", "uncut", "column"),
    [(1.0, False, "model"), (0.0, False, "model"), (0.7, False, "rollout"), (0.7, True, "uncut"), (0.0, True, "uncut")],
)
def test_the_old_policy_is_what_the_trainer_scores_the_whole_distribution_at_the_samples_temperature(
    temperature: float, uncut: bool, column: str
) -> None:
    samples = samples_of()
    model = Ragged(samples.rollout_logprobs.values - 1, samples.rollout_logprobs.lengths)
    temperatures = np.full(len(samples), temperature, np.float32)
    whole = Ragged(samples.rollout_logprobs.values - 2, samples.rollout_logprobs.lengths)
    samples = replace(
        samples, model_logprobs=model, temperatures=temperatures, uncut_logprobs=whole if uncut else None
    )
    (batch,) = micro_batches(samples, len(samples))
    part = objective_for(PpoConfig(name="ppo")).part(batch, "wrap", torch.device("cpu"))
    expected = {"model": model, "rollout": samples.rollout_logprobs, "uncut": whole}[column]
    np.testing.assert_array_equal(old_logprobs(part).numpy(), expected.values)
