"""Which options may differ between a run and the one that goes on with it."""

import pytest

from baton.config.resume_rules import FREE_OPTIONS, resume_problems

BEFORE = {"runtime": {"num_inference_per_prompt": 4}, "models": {"policy": {}, "ppo_policy": {"lr": 1e-6}}}

FREE = {
    "layout": {"models": {"ppo_policy": {"lr": 1e-6, "tensor_model_parallel_size": 2, "device": "cpu"}}},
    "replicas": {"models": {"policy": {"num_replica": 2, "omp_threads": 3}, "ppo_policy": {"lr": 1e-6}}},
    "a longer run": {"runtime": {"num_inference_per_prompt": 4, "num_episode": 9000, "save_episode_interval": 3}},
    "deadlines, addresses and stores": {
        "deadlines": {"generate_s": 9}, "services": {"host": "10.0.0.1"}, "store": {"max_attempts": 9},
    },
    "what does nothing": {"models": {"policy": {"max_paddings": 3, "free_memory": True}, "ppo_policy": {"lr": 1e-6}}},
}  # fmt: skip

FIXED = {
    "learning rate": (
        {"models": {"ppo_policy": {"lr": 1e-5}}},
        ["models.ppo_policy.lr: got 1e-05; the run that is resumed has 1e-06; write that, or start another run"],
    ),
    "batch and seed": (
        {"runtime": {"num_inference_per_prompt": 4, "seed": 1, "train_global_batch_size": 8}},
        ["runtime.seed: got 1; the run", "runtime.train_global_batch_size: got 8; the run"],
    ),
    "sampling": ({"models": {"policy": {"temperature": 0.5}, "ppo_policy": {"lr": 1e-6}}}, ["models.policy.temperature"]),
    "algorithm": ({"algorithm": {"name": "gspo"}}, ["algorithm.name"]),
    "another role": (
        {"models": {"ppo_policy": {"lr": 1e-6}, "reference": {}}}, ["models.reference: got {"],
    ),
    "a reward": ({"rewards": {"functions": [{"function": "verifier"}]}}, ["rewards.functions"]),
}  # fmt: skip


@pytest.mark.parametrize("case", FREE)
def test_where_how_fast_and_how_long_may_change(run_of, case):
    assert resume_problems(run_of(**BEFORE | FREE[case]), run_of(**BEFORE)) == []


@pytest.mark.parametrize("case", FIXED)
def test_what_is_trained_on_what_may_not_change_and_each_option_is_named_with_both_values(run_of, case):
    sections, expected = FIXED[case]
    problems = resume_problems(run_of(**BEFORE | sections), run_of(**BEFORE))
    assert len([one for one in problems if any(one.startswith(start) for start in expected)]) == len(expected), problems


def test_every_option_that_may_change_is_one(run_of):
    run = run_of(**BEFORE | {"models": {name: {} for name in ("policy", "ppo_policy", "reference", "value", "ppo_value")}})
    fields = {f"models.*.{name}" for role in run.models.roles().values() for name in type(role).model_fields}
    for section in ("runtime", "rewards"):
        fields |= {f"{section}.{name}" for name in type(getattr(run, section)).model_fields}
    assert not {f"{section}.{name}" for section, names in FREE_OPTIONS.items() for name in names} - fields
