"""The options that only one generator of `models.policy` carries out do not start with the other."""

from typing import Any

import pytest

from baton.config import ConfigError

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
