"""What each algorithm makes of a step's samples: the same numbers for every split, and defined ones for odd samples."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from objective_samples import LENGTHS, losses_of, micro_batches, on_ranks, plan_of, samples_of, token_scores
from pydantic import TypeAdapter

from baton.clients.buffer import MicroBatch
from baton.config.algorithm import AlgorithmConfig
from baton.errors import InvalidRequestError
from baton.samples import Ragged, RewardStatus, Samples
from services.trainer.objectives import objective_for
from services.trainer.objectives.base import Objective

ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": {"name": "grpo", "kl_coef": 0.1},
    "grpo by sequence": {"name": "grpo", "loss_normalization": "sequence", "dual_clip": 3.0},
    "grpo by a constant": {"name": "grpo", "loss_normalization": "constant", "normalization_length": 7},
    "gspo": {"name": "gspo"},
    "ppo": {"name": "ppo", "fix_kl_coef": False},
    "ppo by sequence": {"name": "ppo", "loss_normalization": "sequence", "whiten_padding": True},
    "dpo": {"name": "dpo"},
    "ipo": {"name": "dpo", "loss": "ipo"},
    "online dpo": {"name": "online_dpo"},
    "sft": {"name": "sft"},
    "sft by sequence": {"name": "sft", "loss_normalization": "sequence"},
}
POLICY_GRADIENTS = [name for name in ALGORITHMS if name.startswith(("g", "p"))]
SMALLEST = {"sample": 1, "pair": 2, "group": 4}


def made(section: dict[str, Any]) -> Objective:
    return objective_for(TypeAdapter(AlgorithmConfig).validate_python(section))


def objective(name: str) -> Objective:
    return made(ALGORITHMS[name])


def whole(name: str, samples: Samples, **options: Any) -> dict[str, float]:
    batches = micro_batches(samples, len(samples))
    return losses_of(plan_of(objective(name), batches, **options), batches)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_step_has_the_same_numbers_however_it_is_split(name: str) -> None:
    samples, smallest = samples_of(), SMALLEST[objective(name).unit]
    expected = whole(name, samples)
    assert all(math.isfinite(value) for value in expected.values()) and abs(expected["loss"]) > 1e-4
    batches = micro_batches(samples, smallest)
    assert losses_of(plan_of(objective(name), batches), batches) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    shares = [batches[: len(batches) // 2], batches[len(batches) // 2 :]]
    plans = on_ranks([objective(name), objective(name)], shares)
    parts = [losses_of(plan, share) for plan, share in zip(plans, shares, strict=True)]
    assert {key: sum(part[key] for part in parts) for key in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert plans[0].metrics == plans[1].metrics and plans[0].totals == plans[1].totals, "all ranks know the same"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_absent_column_is_named(name: str) -> None:
    for column in objective(name).columns:
        with pytest.raises(InvalidRequestError, match=f"lack {column};"):
            objective(name).check(replace(samples_of(), **{column: None}))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_step_of_empty_responses_has_a_finite_loss_and_no_token(name: str) -> None:
    empty = samples_of(lengths=[0] * 8)
    batches = micro_batches(empty, 8)
    plan = plan_of(objective(name), batches)
    assert all(math.isfinite(value) for value in (losses_of(plan, batches) | dict(plan.metrics)).values())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_repeats_that_fill_the_last_step_stay_out_if_the_run_file_says_so(name: str) -> None:
    samples = samples_of()
    filled = samples.take([*range(8), 0, 1, 2, 3])
    batches = [MicroBatch("lease", filled, np.array([False] * 8 + [True] * 4))]
    masked = losses_of(plan_of(objective(name), batches, tail="mask"), batches)
    assert masked == pytest.approx(whole(name, samples), rel=1e-4, abs=1e-6)
    counted = losses_of(plan_of(objective(name), batches, tail="wrap"), batches)
    assert abs(counted["loss"] - masked["loss"]) > 1e-5


def test_a_constant_length_divides_the_sum_over_tokens() -> None:
    samples, config = samples_of(), {"name": "grpo"}
    constant = config | {"loss_normalization": "constant", "normalization_length": 7}
    batches = micro_batches(samples, 4)
    mean, scaled = (losses_of(plan_of(made(section), batches), batches) for section in (config, constant))
    sized = sum(length > 0 for length in LENGTHS)
    assert scaled["loss"] == pytest.approx(mean["loss"] * sum(LENGTHS) / (sized * 7), rel=1e-5)
    assert scaled["entropy"] == pytest.approx(mean["entropy"], rel=1e-5), "what is reported stays a mean"


@pytest.mark.parametrize("normalization", ["token", "sequence"])
def test_the_sft_loss_is_the_cross_entropy_of_the_tokens_that_the_mask_keeps(normalization: str) -> None:
    samples = samples_of()
    mask = np.random.default_rng(2).integers(0, 2, sum(LENGTHS)).astype(np.uint8)
    samples = replace(samples, loss_mask=Ragged(mask, samples.response_ids.lengths))
    logprobs = np.split(token_scores(samples).logprobs_N.double().numpy(), samples.response_ids.offsets[1:-1])
    rows = [-row[keep > 0] for row, keep in zip(logprobs, samples.loss_mask.rows(), strict=True) if keep.any()]
    expected = np.concatenate(rows).mean() if normalization == "token" else np.mean([row.mean() for row in rows])
    batches = micro_batches(samples, 3)
    plan = plan_of(made({"name": "sft", "loss_normalization": normalization}), batches)
    assert losses_of(plan, batches)["loss"] == pytest.approx(expected, rel=1e-6)


def test_a_group_that_a_step_has_twice_counts_as_two() -> None:
    samples = samples_of()
    first, second = (whole("online dpo", samples.take(range(start, start + 4)))["loss"] for start in (0, 4))
    filled = whole("online dpo", samples.take([*range(4), *range(8)]))
    assert filled["loss"] == pytest.approx((2 * first + second) / 3, rel=1e-5)


@pytest.mark.parametrize("name", [*POLICY_GRADIENTS, "online dpo"])
def test_an_unscored_sample_changes_nothing(name: str) -> None:
    def with_unscored(reward: float, logprob: float) -> dict[str, float]:
        samples = samples_of()
        status, rewards = samples.reward_status.copy(), samples.rewards.copy()
        rollout = samples.rollout_logprobs.values.copy()
        status[2], rewards[2] = RewardStatus.TIMEOUT, reward
        sizes = np.array([3] * 4 + [4] * 4, np.int32)
        rollout[3:8] = logprob
        rollout_logprobs = Ragged(rollout, samples.rollout_logprobs.lengths)
        columns = {"rewards": rewards, "rollout_logprobs": rollout_logprobs, "group_sizes": sizes}
        return whole(name, replace(samples, reward_status=status, **columns))

    assert with_unscored(math.nan, -math.inf) == pytest.approx(with_unscored(1.0, -1.0), rel=1e-5)


@pytest.mark.parametrize("name", ["grpo", "gspo", "ppo", "online dpo"])
@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_reward_that_is_no_number_though_it_counts_is_refused_by_name(name: str, reward: float) -> None:
    samples = samples_of()
    samples.rewards[5] = reward
    with pytest.raises(InvalidRequestError, match=f"sample s5 has the reward {reward}, but its status says"):
        objective(name).check(samples)
    samples.reward_status[5], samples.group_sizes[4:] = RewardStatus.ERROR, 3
    objective(name).check(samples)


@pytest.mark.parametrize("name", ["grpo by sequence", "gspo"])
@pytest.mark.parametrize("groups", ["of one", "of equal rewards"])
def test_groups_that_compare_nothing_have_no_loss(name: str, groups: str) -> None:
    samples = samples_of()
    rewards = samples.rewards if groups == "of one" else np.full(8, 0.1, np.float32)
    nothing = replace(samples, rewards=rewards, group_reward_mean=rewards, group_reward_std=np.zeros(8, np.float32))
    assert whole(name, nothing)["loss"] == 0.0


def test_ppo_of_equal_returns_has_finite_losses() -> None:
    lengths = [1] * 4
    samples = samples_of(lengths=lengths)
    flat = Ragged(np.zeros(4, np.float32), samples.values.lengths)
    columns = dict.fromkeys(("values", "token_rewards", "reference_logprobs", "rollout_logprobs"), flat)
    sums = whole("ppo", replace(samples, rewards=np.ones(4, np.float32), **columns))
    assert sums["loss"] == pytest.approx(0.0, abs=1e-6)
    assert all(math.isfinite(value) for value in sums.values())


@pytest.mark.parametrize("name", ["dpo", "ipo"])
def test_a_pair_that_is_not_whole_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="3 samples, which are no whole pairs"):
        objective(name).check(samples_of(lengths=LENGTHS[:3]))
    with pytest.raises(InvalidRequestError, match="samples s3 and s4 stand where a pair should, but are of groups g0 and"):
        objective(name).check(samples_of().take([0, 1, 3, 4]))


@pytest.mark.parametrize("unscored", [[2], [0, 2], [0, 1, 2, 3]], ids=["one", "half", "all"])
def test_a_group_of_which_samples_have_no_reward_is_whole_all_the_same(unscored: list[int]) -> None:
    samples = samples_of()
    status = samples.reward_status.copy()
    status[unscored] = RewardStatus.ABSTAIN
    sizes = np.array([4 - len(unscored)] * 4 + [4] * 4, np.int32)  # as a group's statistics have it: of those with a reward
    scored = [row for row in range(8) if row not in unscored]
    alone = replace(samples.take(scored), group_sizes=sizes[scored])
    found = whole("online dpo", replace(samples, reward_status=status, group_sizes=sizes))
    assert found == pytest.approx(whole("online dpo", alone), rel=1e-5)


def test_a_group_that_is_not_whole_is_refused_by_online_dpo() -> None:
    with pytest.raises(InvalidRequestError, match="3 samples with a reward of group g0, which has 4"):
        objective("online dpo").check(samples_of().take([0, 1, 2, 4, 5, 6, 7]))


def test_the_reward_model_leaves_a_masked_pair_out() -> None:
    model = made({"name": "reward_model"})
    batches = [MicroBatch("lease", samples_of(lengths=LENGTHS[:4]), np.array([False, False, True, True]))]
    plan = plan_of(model, batches, tail="mask")
    output = plan.loss(0, torch.tensor([2.0, 1.0, 0.0, 9.0]))
    assert output.loss.item() == pytest.approx(math.log1p(math.exp(-1.0)))
    assert output.sums["accuracy"].item() == 1.0
