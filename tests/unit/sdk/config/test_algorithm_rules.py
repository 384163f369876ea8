"""The options of `algorithm`: what belongs together."""

import pytest

BROKEN = {
    "online DPO needs groups": (
        {"name": "online_dpo"}, 1, "runtime.num_inference_per_prompt: got 1; times models.policy.n must be at least 2",
    ),
    "a constant length is given": (
        {"loss_normalization": "constant"}, 2,
        "algorithm.normalization_length: is missing; loss_normalization: constant needs it",
    ),
    "a length divides something": (
        {"normalization_length": 8}, 2,
        "algorithm.normalization_length: got 8; has no effect with loss_normalization: token",
    ),
    "a divergence that is weighted is in the loss": (
        {"kl_weighting": True}, 2, "algorithm.kl_weighting: got true; has no effect without kl_coef",
    ),
    "the limits of rejection are in order": (
        {"off_policy": {"reject_below": 2.0, "reject_above": 0.5}}, 2,
        "algorithm.off_policy.reject_below: got 2.0; must be less than reject_above (0.5)",
    ),
    "a weight that is adapted is not zero": (
        {"name": "ppo", "init_kl_coef": 0, "fix_kl_coef": False}, 1,
        "algorithm.fix_kl_coef: got false; has no effect with init_kl_coef 0",
    ),
    "ipo smooths no labels": (
        {"name": "dpo", "loss": "ipo", "label_smoothing": 0.1}, 1,
        "algorithm.label_smoothing: got 0.1; has no effect with loss: ipo",
    ),
    "an option of another algorithm": (
        {"name": "sft", "beta": 1}, 1, "algorithm.beta: got 1; is not an option; beta belongs in algorithm with name: dpo",
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_named(error_of, rule):
    algorithm, responses, line = BROKEN[rule]
    (problem,) = error_of(algorithm=algorithm, runtime={"num_inference_per_prompt": responses}).splitlines()[1:]
    assert problem.strip().startswith(line)


@pytest.mark.parametrize("name", ["ppo", "dpo", "sft", "reward_model"])
def test_an_algorithm_without_groups_takes_single_responses(run_of, name):
    assert run_of(algorithm={"name": name}).algorithm.name == name


def test_ppo_has_the_defaults_of_chatlearn(run_of):
    ppo = run_of(algorithm={"name": "ppo"}).algorithm
    assert (ppo.init_kl_coef, ppo.fix_kl_coef, ppo.target, ppo.horizon) == (0.02, True, 6.0, 10000.0)
    assert (ppo.gamma, ppo.lam, ppo.clip_ratio_low, ppo.clip_ratio_high, ppo.cliprange_value) == (1.0, 0.95, 0.2, 0.2, 0.1)
    assert (ppo.cliprange_reward, ppo.raw_reward_coeff, ppo.reward_bias) == (100.0, 1.0, 0.0)
    assert (ppo.ngram_coef, ppo.lm_coef, ppo.clipped_value_only, ppo.divide_by_length) == (1.0, 0.0, True, True)
