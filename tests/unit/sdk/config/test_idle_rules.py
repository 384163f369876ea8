"""An option that the others deprive of any effect is refused, with the cause and what gives it one."""

import pytest

from baton.config import ConfigError

PPO = {"name": "ppo"}
STEP = {"off_policy": {"old_policy": "step"}}
FIXED = "with fix_kl_coef: true; leave it out, or write fix_kl_coef: false"
CONSTANT = "with lr_decay_style: constant; leave it out, or write lr_decay_style: cosine, or linear"

IDLE = {
    "a target of a weight that is fixed": (PPO | {"target": 6.0}, "target: got 6.0", FIXED),
    "a horizon of it": (PPO | {"horizon": 100}, "horizon: got 100.0", FIXED),
    "padding that is not whitened": (
        PPO | {"whiten_advantages": False, "whiten_padding": True}, "whiten_padding: got true",
        "with whiten_advantages: false; leave it out, or write whiten_advantages: true",
    ),
    "the clipped value alone where none is clipped": (
        PPO | {"cliprange_value": None, "clipped_value_only": False}, "clipped_value_only: got false",
        "with cliprange_value: null, which clips no value; leave it out, or set cliprange_value",
    ),
    "a length that divides nothing": (
        PPO | {"init_kl_coef": 0, "divide_by_length": False}, "divide_by_length: got false",
        "with init_kl_coef and lm_coef 0: there is nothing to divide",
    ),
    "a limit on a reward that is left out": (
        PPO | {"raw_reward_coeff": 0, "cliprange_reward": 5}, "cliprange_reward: got 5.0", "with raw_reward_coeff 0"
    ),
    "an estimator of what is not in the loss": (
        {"kl_estimator": "k3"}, 'kl_estimator: got "k3"', "without kl_coef; leave it out, or set kl_coef"
    ),
    "a clip of a ratio that is one": (
        {"clip_ratio_high": 0.28} | STEP, "clip_ratio_high: got 0.28",
        "with off_policy.old_policy: step, where the clipped ratio is always 1; leave it out, or write old_policy: rollout",
    ),
    "a bound of it": (PPO | {"dual_clip": 3} | STEP, "dual_clip: got 3.0", "with off_policy.old_policy: step"),
}  # fmt: skip


@pytest.mark.parametrize("case", IDLE)
def test_an_option_of_the_algorithm_without_effect_is_named_with_its_cause(error_of, case):
    algorithm, option, cause = IDLE[case]
    (problem,) = error_of(algorithm=algorithm, runtime={"num_inference_per_prompt": 2}).splitlines()[1:]
    assert problem.strip().startswith(f"algorithm.{option}; has no effect {cause}")


@pytest.mark.parametrize("role", ["ppo_policy", "ppo_value"])
@pytest.mark.parametrize("option", ["min_lr", "lr_decay_iters"])
def test_the_end_of_a_decay_is_refused_where_nothing_decays(error_of, run_of, role, option):
    (problem,) = error_of(models={role: {"lr": 5, option: 1}}).splitlines()[1:]
    assert problem.strip().startswith(f"models.{role}.{option}: got 1") and problem.endswith(f"has no effect {CONSTANT}")
    run_of(models={role: {"lr": 5, option: 1, "lr_decay_style": "linear"}})


LORA = {
    "part_module_name": "self_attn", "lora_dim": 16, "lora_dropout": 0.1, "lora_scaling": 2.0, "lora_layer": "LinearLayer",
    "column_only_qkv": True, "load": "an/adapter", "sync": "merged", "checkpoint": "merged",
}  # fmt: skip


@pytest.mark.parametrize("option", LORA)
def test_an_option_of_adapters_is_refused_where_nothing_is_said_of_training_any(error_of, run_of, option):
    lora = ({"sync": "merged"} if option == "checkpoint" else {}) | {option: LORA[option]}
    problems = error_of(models={"ppo_policy": {"lora": lora}}).splitlines()[1:]
    cause = "has no effect without enable_lora: all weights are trained; leave it out, or write enable_lora: true"
    assert [problem.strip().partition(":")[0] for problem in problems] == [f"models.ppo_policy.lora.{name}" for name in lora]
    assert all(problem.endswith(cause) for problem in problems)
    run_of(models={"ppo_policy": {"lora": {"enable_lora": True} | lora}})


def test_a_section_of_adapters_that_is_turned_off_is_remarked(run_of):
    def remarks(**lora):
        return run_of(models={"ppo_policy": {"lora": lora}, "ppo_value": {"lora": lora}}).remarks()

    told = "enable_lora is false: all weights are trained, and the section's other options have no effect"
    expected = [f"models.{role}.lora.{told}" for role in ("ppo_policy", "ppo_value")]
    assert remarks(enable_lora=False, lora_dim=16) == expected
    assert remarks(enable_lora=False) == remarks(enable_lora=True, lora_dim=16) == remarks() == []


def test_what_the_rollout_gets_of_a_critics_adapter_is_refused_as_it_gets_nothing(error_of, run_of):
    (problem,) = error_of(models={"ppo_value": {"lora": {"enable_lora": True, "sync": "merged"}}}).splitlines()[1:]
    assert problem.strip() == (
        'models.ppo_value.lora.sync: got "merged"; has no effect: nothing of the critic is sent; leave it out'
    )
    run_of(models={"ppo_value": {"lora": {"enable_lora": True, "sync": "adapter"}}})


def test_what_the_others_give_an_effect_loads_and_so_does_what_is_off(run_of):
    run_of(algorithm=PPO | {"fix_kl_coef": False, "target": 1.0, "horizon": 9.0, "whiten_padding": True})
    run_of(algorithm=PPO | {"clipped_value_only": False, "whiten_advantages": False, "whiten_padding": False})
    run_of(algorithm=PPO | {"init_kl_coef": 0, "lm_coef": 0.1, "divide_by_length": False, "reward_bias": 1})
    grouped = {"num_inference_per_prompt": 2}
    run_of(algorithm={"kl_coef": 0.1, "kl_estimator": "k1", "kl_weighting": True, "clip_ratio_low": 0.1}, runtime=grouped)
    run_of(algorithm={"kl_weighting": False, "dual_clip": None, "normalization_length": None} | STEP, runtime=grouped)


OF_A_ROLLOUT = {
    "models.policy.dtype": "float32",
    "models.policy.temperature": 0.7,
    "models.policy.max_new_tokens": 16,
    "models.policy.enforce_eager": True,
    "models.policy.eval_top_p": 0.9,
    "models.policy.engine_args": {"max_logprobs": 5},
    "models.policy.num_replica": 2,
    "models.policy.sync_frequency": 2,
    "runtime.generation_batch_size": 4,
    "rewards.workers": 1,
    "services.rollout_port": 50100,
}


def run_with(run_of, path, value, **policy):
    sections = {
        "algorithm": {"name": "sft"}, "prompts": {"source": "jsonl", "path": "answers.jsonl"},
        "runtime": {}, "rewards": {}, "services": {}, "models": {"policy": policy},
    }  # fmt: skip
    *parents, option = path.split(".")
    place = sections
    for parent in parents:
        place = place[parent]
    place[option] = value
    return run_of(**sections)


@pytest.mark.parametrize("path", OF_A_ROLLOUT)
def test_an_option_of_the_rollout_is_refused_where_answers_are_given(run_of, path):
    run = run_with(run_of, path, OF_A_ROLLOUT[path])
    with pytest.raises(ConfigError) as caught:
        run.require_startable()
    (problem,) = str(caught.value).splitlines()[1:]
    assert problem.strip().startswith(f"{path}: got ")
    assert problem.endswith("has no effect: sft learns from given answers, and nothing is rolled out; leave it out")


def test_what_names_the_model_and_what_is_inert_everywhere_starts_where_answers_are_given(run_of):
    options = {"model": "m", "revision": "v1", "tokenizer": "t", "tokenizer_revision": "v1", "log_stats": True}
    run_with(run_of, "models.policy.seq_length", 128, **options).require_startable()
