"""The options that only one generator of `models.policy` carries out do not start with the other."""

from typing import Any

import pytest

from baton.config import ConfigError
from baton.config.generator_rules import generator_problems

GROUPED = {"num_inference_per_prompt": 8, "sample_per_episode": 64}


def policy(**options: Any) -> dict[str, Any]:
    return {"models": {"policy": options}}


STATIC = {"generator": "megatron", "batch_generation": {"ranking": True, "min_prompt_length": 8}}


def test_static_batches_start_with_their_options(run_of):
    run_of(runtime=GROUPED, **policy(**STATIC, enforce_eager=True, max_num_seqs=16)).require_startable()


@pytest.mark.parametrize("option", [{"ranking": True}, {"min_prompt_length": 4}])
def test_static_batches_options_do_not_start_with_vllm(run_of, option):
    with pytest.raises(
        ConfigError, match=r"models.policy.batch_generation: got .*; set models.policy.generator to megatron"
    ):
        run_of(runtime=GROUPED, **policy(batch_generation=option)).require_startable()


@pytest.mark.parametrize("option", [{"quantization": "awq"}, {"engine_args": {"seed_oss": 1}}, {"presence_penalty": 0.5}])
def test_vllms_options_do_not_start_with_static_batches(run_of, option):
    with pytest.raises(ConfigError, match=rf"models.policy.{next(iter(option))}: got .*no effect on static batches"):
        run_of(runtime=GROUPED, **policy(generator="megatron", **option)).require_startable()


def test_vllms_options_at_their_defaults_start_with_static_batches(run_of):
    run_of(runtime=GROUPED, **policy(generator="megatron", gpu_memory_utilization=0.9, engine_args={})).require_startable()


def test_static_batches_do_not_start_with_several_greedy_responses_to_a_prompt(run_of):
    run = run_of(runtime=GROUPED, **policy(generator="megatron", temperature=0))
    with pytest.raises(ConfigError, match=r"models\.policy\.temperature: got 0.0; .* refuse 8 greedy responses"):
        run.require_startable()


@pytest.mark.parametrize("name", ["temperature", "eval_temperature"])
@pytest.mark.parametrize("value", [0.001, 2.5])
def test_a_temperature_at_which_vllm_does_not_sample_does_not_start(run_of, name, value):
    with pytest.raises(ConfigError, match=rf"models\.policy\.{name}: got {value}; must be 0 .*, or from 0.01 to 2"):
        run_of(runtime=GROUPED, **policy(**{name: value})).require_startable()
    run_of(runtime=GROUPED, **policy(generator="megatron", **{name: value})).require_startable()


@pytest.mark.parametrize(
    ("generator", "temperature", "runtime"),
    [("megatron", 0.5, GROUPED), ("vllm", 0, GROUPED), ("vllm", 2, GROUPED), ("vllm", 0.01, GROUPED), ("megatron", 0, {})],
)
def test_other_temperatures_vllm_and_single_responses_are_as_they_were(run_of, generator, temperature, runtime):
    assert not list(generator_problems(run_of(runtime=runtime, **policy(generator=generator, temperature=temperature))))


def test_given_answers_are_not_sampled_whatever_the_temperature(run_of):
    data = {"algorithm": {"name": "dpo"}, "prompts": {"source": "jsonl", "path": "answers.jsonl"}}
    run = run_of(**data, models={"policy": {"generator": "megatron", "temperature": 0}, "reference": {}})
    assert not list(generator_problems(run))


def adapted(generator: str = "vllm", **lora: Any) -> dict[str, Any]:
    return {"models": {"policy": {"generator": generator}, "ppo_policy": {"lora": {"enable_lora": True, **lora}}}}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (adapted("megatron"), r'models.ppo_policy.lora.sync: got "adapter"; needs vLLM.*; set it to merged'),
        (adapted(lora_dim=600), r"models.ppo_policy.lora.lora_dim: got 600; must be at most 512 .*sync to merged"),
    ],
)
def test_an_adapter_that_the_generator_cannot_have_does_not_start_and_merged_weights_are_offered(run_of, options, told):
    with pytest.raises(ConfigError, match=told):
        run_of(runtime=GROUPED, **options).require_startable()


@pytest.mark.parametrize(
    "options", [adapted("megatron", sync="merged"), adapted(lora_dim=600, sync="merged"), adapted(lora_dim=512)]
)
def test_the_generator_has_nothing_against_merged_weights_or_a_rank_that_fits(run_of, options):
    assert not list(generator_problems(run_of(runtime=GROUPED, **options)))


def test_merged_checkpoints_need_merged_updates(run_of):
    told = r"models\.ppo_policy\.lora\.checkpoint.*needs models\.ppo_policy\.lora\.sync merged"
    with pytest.raises(ConfigError, match=told):
        run_of(runtime=GROUPED, **adapted(checkpoint="merged")).require_startable()
    run_of(runtime=GROUPED, **adapted(checkpoint="merged", sync="merged")).require_startable()
