"""Rules about the engine of models.ppo_policy and models.ppo_value."""

import pytest

GROUPED = {"num_inference_per_prompt": 8, "sample_per_episode": 64}
BROKEN = {
    "only full recompute counts layers": (
        {"recompute_granularity": "selective", "recompute_num_layers": 2},
        "recompute_num_layers: got 2; counts the layers that recompute_granularity: full computes again",
    ),
    "sequence parallelism needs tensor parallelism": (
        {"sequence_parallel": True},
        "sequence_parallel: got true; needs a tensor_model_parallel_size of at least 2",
    ),
    "a budget of tokens counts no padding": (
        {"pad_samples": True},
        "pad_samples: got true; needs micro-batches by number of samples",
    ),
    "padded samples share no prompt": (
        {"pad_samples": True, "share_prefix": True},
        "share_prefix: got true; must be false with pad_samples",
    ),
}
"""Name -> (options of a trained model, the problem)."""
STARTABLE = {
    "full recompute of some layers": {"recompute_granularity": "full", "recompute_num_layers": 2},
    "selective recompute": {"recompute_granularity": "selective"},
    "sequence parallelism": {"sequence_parallel": True, "tensor_model_parallel_size": 2},
    "padded samples": {"pad_samples": True},
}


@pytest.mark.parametrize("role", ["ppo_policy", "ppo_value"])
@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_named(error_of, rule, role):
    options, line = BROKEN[rule]
    runtime = {"train_micro_batch_tokens": 4096} if "tokens" in rule else {}
    problems = [problem.strip() for problem in error_of(runtime=runtime, models={role: options}).splitlines()[1:]]
    assert [problem for problem in problems if problem.startswith(f"models.{role}.{line}")] and len(problems) == 1


@pytest.mark.parametrize("case", STARTABLE)
def test_what_the_engine_can_do_is_startable(run_of, case):
    run_of(runtime=GROUPED, models={"ppo_policy": STARTABLE[case]}).require_startable()
