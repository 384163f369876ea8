"""What each algorithm needs of models and data: asked at the start, and each line says what to write."""

import pytest

from baton.config import ConfigError

GROUPED = {"num_inference_per_prompt": 2}
PAIRS = {"prompts": {"source": "jsonl", "path": "pairs.jsonl"}}
STARTS = {
    "grpo": {"runtime": GROUPED},
    "grpo near a reference": {"runtime": GROUPED, "algorithm": {"kl_coef": 0.1}, "models": {"reference": {}}},
    "grpo with a metric of the distance": {"runtime": GROUPED, "models": {"reference": {}}},
    "ppo": {"algorithm": {"name": "ppo"}, "models": {"ppo_value": {}, "reference": {}}},
    "ppo with all six": {"algorithm": {"name": "ppo"}, "models": {
        "policy": {}, "reference": {}, "value": {}, "reward": {"model": "r"}, "ppo_policy": {}, "ppo_value": {}}},
    "ppo without a reference": {"algorithm": {"name": "ppo", "init_kl_coef": 0}, "models": {"ppo_value": {}}},
    "online dpo": {
        "runtime": {"num_inference_per_prompt": 4, "train_micro_batch_size": 8, "train_global_batch_size": 8},
        "algorithm": {"name": "online_dpo"}, "models": {"reference": {}},
    },
    "online dpo with n": {
        "runtime": {"sample_per_episode": 12, "train_micro_batch_size": 8, "train_global_batch_size": 8,
                    "stream_data_loader_type": "dynamic"},
        "algorithm": {"name": "online_dpo"}, "models": {"policy": {"n": 8}, "reference": {}},
    },
    "dpo": {"algorithm": {"name": "dpo"}, "models": {"reference": {}}, **PAIRS},
    "sft": {"algorithm": {"name": "sft"}, **PAIRS},
    "sft of a task's answers": {"algorithm": {"name": "sft"}, "prompts": {"source": "reasoning_gym", "task": "chain_sum"}},
    "a reward model": {"algorithm": {"name": "reward_model"}, **PAIRS},
    "evaluation": {"runtime": GROUPED | {"eval_episode_interval": 2}, "prompts": {"source": "app", "holdout": 8}},
}  # fmt: skip


@pytest.mark.parametrize("case", STARTS)
def test_what_an_algorithm_has_all_of_starts(run_of, case):
    run_of(**STARTS[case]).require_startable()


LACKS = {
    "a reference for the divergence": (
        {"runtime": GROUPED, "algorithm": {"kl_coef": 0.1}},
        "models.reference: is missing; algorithm.kl_coef weighs the divergence from it; add `reference: {}`",
    ),
    "a reference for ppo": (
        {"algorithm": {"name": "ppo"}, "models": {"ppo_value": {}}},
        "models.reference: is missing; algorithm.init_kl_coef weighs .*, or set algorithm.init_kl_coef to 0",
    ),
    "a reference for its language-model reward": (
        {"algorithm": {"name": "ppo", "init_kl_coef": 0, "lm_coef": 0.1}, "models": {"ppo_value": {}}},
        "models.reference: is missing; algorithm.lm_coef weighs the reference's .*, or set algorithm.lm_coef to 0",
    ),
    "a critic": ({"algorithm": {"name": "ppo"}, "models": {"reference": {}}}, "models.ppo_value: is missing; ppo trains"),
    "a reference for dpo": ({"algorithm": {"name": "dpo"}, **PAIRS}, "models.reference: is missing; dpo compares"),
    "prompts to look at": (
        {"runtime": GROUPED | {"eval_episode_interval": 2}}, "eval_episode_interval: got 2; needs prompts that are not"
    ),
}  # fmt: skip
SUPERFLUOUS = {
    "a critic of grpo": ({"runtime": GROUPED, "models": {"ppo_value": {}}}, "models.ppo_value: .* only ppo has a critic"),
    "a reference of sft": (
        {"algorithm": {"name": "sft"}, "models": {"reference": {}}, **PAIRS}, "models.reference: .* sft compares nothing"
    ),
    "rewards of given answers": (
        {"algorithm": {"name": "sft"}, "rewards": {"functions": [{"function": "verifier"}]}, **PAIRS}, "rewards.functions"
    ),
    "relay of given answers": (
        {"algorithm": {"name": "sft"}, "runtime": {"max_relay_episode": 1, "relay_sample_fn": "last"}, **PAIRS},
        "runtime.max_relay_episode: got 1; sft rolls nothing out",
    ),
    "repeats of given answers": (
        {"algorithm": {"name": "sft"}, "runtime": GROUPED, **PAIRS}, "num_inference_per_prompt: got 2; .* must be 1"
    ),
    "one answer for a pair": (
        {"algorithm": {"name": "dpo"}, "models": {"reference": {}}, "prompts": {"source": "reasoning_gym", "task": "t"}},
        "prompts.source: got \"reasoning_gym\"; dpo needs a chosen and a rejected",
    ),
    "held-out prompts that nobody looks at": (
        {"runtime": GROUPED, "prompts": {"source": "app", "holdout": 8}}, "prompts.holdout: got 8; .* nobody looks at"
    ),
    "evaluations of weights that the rollout does not have": (
        {"runtime": GROUPED | {"eval_episode_interval": 3}, "prompts": {"source": "app", "holdout": 8},
         "models": {"policy": {"sync_frequency": 2}}},
        r"runtime.eval_episode_interval: got 3; must be a multiple of models.policy.sync_frequency \(2\)",
    ),
    "a weight of no reward model": (
        {"runtime": GROUPED, "rewards": {"model_weight": 0.5}}, "rewards.model_weight: got 0.5; has no effect without"
    ),
    "half a pair": (
        {"algorithm": {"name": "reward_model"}, "runtime": {"train_micro_batch_size": 3}, **PAIRS},
        "train_micro_batch_size: got 3; must be a multiple of 2: reward_model keeps the two answers .* together; write 4",
    ),
    "half a group": (
        {"algorithm": {"name": "online_dpo"}, "models": {"reference": {}},
         "runtime": {"num_inference_per_prompt": 4, "train_micro_batch_size": 2}},
        "train_micro_batch_size: got 2; must be a multiple of 4: online_dpo keeps a group together",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("sections", "line"), [*LACKS.values(), *SUPERFLUOUS.values()], ids=[*LACKS, *SUPERFLUOUS])
def test_what_is_missing_or_has_no_place_loads_and_is_refused_at_the_start(run_of, sections, line):
    with pytest.raises(ConfigError, match=line):
        run_of(**sections).require_startable()


def test_an_episode_of_pairs_has_two_samples_for_each_prompt(run_of):
    run = run_of(algorithm={"name": "dpo"}, runtime={"sample_per_episode": 32})
    assert (run.prompts_per_episode, run.group_size, run.samples_per_unit, run.rollout_replicas) == (16, 2, 2, 0)
