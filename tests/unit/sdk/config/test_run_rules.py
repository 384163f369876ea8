"""Rules that tie several options together."""

import re

import pytest

from baton.config import ConfigError

GROUPED = {"num_inference_per_prompt": 8, "sample_per_episode": 64}


def policy(**options):
    return {"models": {"policy": options}}


def trainer(**options):
    return {"models": {"ppo_policy": options}}


BROKEN = {
    "global batch is a multiple of the micro-batch": (
        {"runtime": {"train_micro_batch_size": 4, "train_global_batch_size": 10}},
        "runtime.train_global_batch_size: got 10; must be a multiple of runtime.train_micro_batch_size (4); write 12",
    ),
    "global batch is a multiple of micro-batch x data-parallel size": (
        {
            "runtime": {"train_micro_batch_size": 4, "train_global_batch_size": 12},
            **trainer(data_parallel_size=2),
        },
        "runtime.train_global_batch_size: got 12; must be a multiple of runtime.train_micro_batch_size x the "
        "data-parallel size (4 x 2); write 16",
    ),
    "the default global batch obeys the rule too": (
        trainer(data_parallel_size=2),
        "runtime.train_global_batch_size: got 2; must be a multiple of",
    ),
    "global batch fits the episode": (
        {"runtime": {"sample_per_episode": 8, "train_global_batch_size": 16}},
        "runtime.train_global_batch_size: got 16; must be at most runtime.sample_per_episode x models.policy.n (8)",
    ),
    "episode is a multiple of the repeats": (
        {"runtime": {"sample_per_episode": 20, "num_inference_per_prompt": 8}},
        "runtime.sample_per_episode: got 20; must be a multiple of runtime.num_inference_per_prompt (8); write 24",
    ),
    "requests of all replicas fit the episode": (
        {"runtime": {"sample_per_episode": 16}, **policy(num_replica=4, generation_batch_size=8)},
        "models.policy.generation_batch_size: got 8; times the 4 replica(s) of models.policy must be at most "
        "runtime.sample_per_episode (16); write at most 4",
    ),
    "the runtime's request size counts where it applies": (
        {"runtime": {"sample_per_episode": 16, "generation_batch_size": 32}},
        "runtime.generation_batch_size: got 32; times the 1 replica(s) of models.policy must be at most",
    ),
    "a model that leaves its request size to the runtime": (
        {
            "runtime": {"sample_per_episode": 16, "generation_batch_size": 32},
            **policy(generation_batch_size=0),
        },
        "runtime.generation_batch_size: got 32; times the 1 replica(s) of models.policy must be at most",
    ),
    "more replicas than samples": (
        {"runtime": {"sample_per_episode": 2}, **policy(num_replica=3, generation_batch_size=1)},
        "models.policy.generation_batch_size: got 1; times the 3 replica(s) of models.policy must be at most "
        "runtime.sample_per_episode (2); raise sample_per_episode, or have fewer replicas",
    ),
    "gpus make whole copies": (
        policy(num_gpu=6, tensor_model_parallel_size=4),
        "models.policy.num_gpu: got 6; must be a multiple of tensor x pipeline x expert parallel size (4); write 8",
    ),
    "replicas agree with gpus": (
        policy(num_gpu=8, tensor_model_parallel_size=2, num_replica=2),
        "models.policy.num_replica: got 2; must be num_gpu / (tensor x pipeline x expert parallel size), "
        "which is 8 / 2; remove it, or write 4",
    ),
    "data-parallel size agrees with gpus": (
        {
            "runtime": {"train_global_batch_size": 4},
            **trainer(num_gpu=8, pipeline_model_parallel_size=2, data_parallel_size=2),
        },
        "models.ppo_policy.data_parallel_size: got 2; must be num_gpu / (tensor x pipeline parallel size), which is 8 / 2",
    ),
    "experts divide the data-parallel copies": (
        {
            "runtime": {"train_global_batch_size": 12},
            **trainer(data_parallel_size=3, expert_model_parallel_size=2),
        },
        "models.ppo_policy.expert_model_parallel_size: got 2; must divide the data-parallel size (3)",
    ),
    "a cpu model has no gpus": (
        policy(device="cpu", num_gpu=1),
        "models.policy.num_gpu: got 1; must be 0 when device",
    ),
    "gpu_per_process fits": (
        policy(num_gpu=1, gpu_per_process=2),
        "models.policy.gpu_per_process: got 2; must be at",
    ),
    "cpu_per_process fits": (
        policy(num_cpu=1, cpu_per_process=2),
        "models.policy.cpu_per_process: got 2; must be at",
    ),
    "zero_size excludes other sizes": (
        policy(num_gpu=4, tensor_model_parallel_size=2, zero_size=2),
        "models.policy.zero_size: got 2; must be 1 when a parallel size is more than 1",
    ),
    "zero_size divides gpus": (
        policy(num_gpu=3, zero_size=2),
        "models.policy.zero_size: got 2; must divide num_gpu (3)",
    ),
    "a model is in one colocation group": (
        {"runtime": {"colocation": ["policy, reference", "value,policy"]}},
        'runtime.colocation.1: got "value,policy"; must not name policy again',
    ),
    "models that share their processes share their GPUs": (
        {"runtime": {"colocation": ["policy,ppo_policy", "reference"]}, "models": {"policy": {}, "reference": {}}},
        'runtime.colocation.1: got "reference"; must not name reference: its processes are those of ppo_policy, which is in',
    ),
    "colocation names models": (
        {"runtime": {"colocation": ["policy,critic"]}},
        'runtime.colocation.0: got "policy,critic"; must name models, which are policy, ppo_policy',
    ),
    "policy and ppo_policy are one model": (
        {"models": {"policy": {"model": "a"}, "ppo_policy": {"model": "b"}}},
        'models.ppo_policy.model: got "b"; must be the model of models.policy (a)',
    ),
    "a reward model is named": ({"models": {"reward": {}}}, "models.reward.model: is missing"),
    "adapters are trained": (
        policy(lora={"enable_lora": True}),
        "models.policy.lora.enable_lora: got true; must be false: only a trained model has adapters",
    ),
    "nothing is trained in float16": (
        trainer(dtype="float16"),
        'models.ppo_policy.dtype: got "float16"; must be bfloat16 or float32: a trained model',
    ),
    "min_lr is at most lr": (
        trainer(lr=1e-6, min_lr=1e-5, lr_decay_style="cosine"),
        "models.ppo_policy.min_lr: got 1e-05; must be at most lr",
    ),
    "warm-up ends before the decay": (
        {"models": {"ppo_value": {"lr_warmup_iters": 10, "lr_decay_iters": 10, "lr_decay_style": "linear"}}},
        "models.ppo_value.lr_warmup_iters: got 10; must be less than lr_decay_iters (10)",
    ),
    "a limit needs its number": (
        policy(new_token_limit=True),
        "models.policy.new_token_limit: got true; needs models.policy.max_new_tokens",
    ),
    "the response leaves room for a prompt": (
        policy(seq_length=64, max_new_tokens=64),
        "models.policy.max_new_tokens: got 64; must be less than seq_length (64)",
    ),
    "greedy responses are all the same": (
        policy(n=2, temperature=0),
        "models.policy.n: got 2; must be 1 at temperature 0",
    ),
    "engine arguments do not repeat options": (
        policy(engine_args={"max_model_len": 64}),
        "models.policy.engine_args.max_model_len: got 64; has an option of its own; set models.policy.seq_length",
    ),
    "one prompt file": (
        {"runtime": {"data_path": "a"}, "prompts": {"source": "jsonl", "path": "b"}},
        'runtime.data_path: got "a"; must not differ from prompts.path (b)',
    ),
    "grpo needs groups": (
        {"algorithm": {"name": "grpo"}},
        "runtime.num_inference_per_prompt: got 1; times models.policy.n must be at least 2",
    ),
    "one address for each replica": (
        {"services": {"rollout_addresses": ["a:1", "b:1"]}},
        'services.rollout_addresses: got ["a:1", "b:1"]; must have one address for each replica of models.policy (1)',
    ),
    "rollout ports stay in range": (
        {"services": {"rollout_port": 65535}, **policy(num_replica=2)},
        "services.rollout_port: got 65535; must leave 2 ports below 65536, one for each replica; write at most 65534",
    ),
    "OpenAI ports stay in range": (
        {"services": {"openai_port": 65535}, **policy(num_replica=2)},
        "services.openai_port: got 65535; must leave 2 ports below 65536, one for each replica; write at most 65534",
    ),
    "OpenAI ports differ from the replicas'": (
        {"services": {"rollout_port": 5000, "openai_port": 5001}, **policy(num_replica=2)},
        "services.openai_port: got 5001; must not need port 5001, which is services.rollout_port's",
    ),
    "ports differ": (
        {"services": {"rollout_port": 5000, "buffer_port": 5001}, **policy(num_replica=2)},
        "services.rollout_port: got 5000; must not need port 5001, which is services.buffer_port's",
    ),
    "the store's port differs": (
        {"services": {"trainer_port": 6379}, "store": {"port": 6379}},
        "store.port: got 6379; must not need port 6379, which is services.trainer_port's",
    ),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_named(error_of, rule):
    sections, line = BROKEN[rule]
    (problem,) = error_of(**sections).splitlines()[1:]
    assert problem.strip().startswith(line)


KEPT = {
    "a global batch of the whole episode": {
        "runtime": {"sample_per_episode": 8, "train_global_batch_size": 8, "train_micro_batch_size": 8}
    },
    "a global batch of all responses": {
        "runtime": {"sample_per_episode": 8, "train_global_batch_size": 32}, **policy(n=4)
    },
    "a global batch of what a flow will make": {
        "runtime": {"sample_per_episode": 8, "train_global_batch_size": 64, "stream_data_loader_type": "dynamic"}
    },
    "requests of the whole episode": {
        "runtime": {"sample_per_episode": 8},
        **policy(num_replica=2, generation_batch_size=4),
    },
    "a process with all gpus": policy(num_gpu=2, gpu_per_process=2),
    "a process with all cores": policy(num_cpu=2, cpu_per_process=2),
    "a learning rate at its limit": trainer(lr=1e-6, min_lr=1e-6, lr_decay_style="linear"),
    "one greedy response": policy(n=1, temperature=0),
    "groups of two": {"algorithm": {"name": "grpo"}, "runtime": {"num_inference_per_prompt": 2}},
    "global batch": {
        "runtime": {"train_micro_batch_size": 4, "train_global_batch_size": 16},
        **trainer(data_parallel_size=2),
    },
    "request size left out is lowered to fit": {
        "runtime": {"sample_per_episode": 4},
        **policy(num_replica=4),
    },
    "whole copies": policy(num_gpu=8, tensor_model_parallel_size=2, pipeline_model_parallel_size=2, num_replica=2),
    "a cpu model": policy(device="cpu", num_cpu=2, omp_threads=1),
    "same model twice": {"models": {"policy": {"model": "a"}, "ppo_policy": {"model": "a"}}},
    "groups by n": {"algorithm": {"name": "grpo"}, **policy(n=4)},
    "greedy evaluation of several samples": policy(n=2, eval_temperature=0),
    "a beam": policy(n=4, use_beam_search=True, temperature=0, top_p=1.0, top_k=0),
    "room for a prompt": policy(seq_length=64, max_new_tokens=63),
    "free ports": {
        "services": {"buffer_port": 0, "trainer_port": 0, "rollout_port": 65534},
        **policy(num_replica=2),
    },
    "same prompt file": {"runtime": {"data_path": "a"}, "prompts": {"source": "jsonl", "path": "a"}},
    "experts": {
        "runtime": {"train_global_batch_size": 16},
        **trainer(data_parallel_size=4, expert_model_parallel_size=2),
    },
    "lora": trainer(lora={"enable_lora": True, "load": "an/adapter"}),
    "addresses": {"services": {"rollout_addresses": ["a:1", "[::1]:2"]}, **policy(num_replica=2)},
}


@pytest.mark.parametrize("case", KEPT)
def test_options_that_keep_the_rules_load(run_of, case):
    run_of(**KEPT[case])


START = {
    "a group of one": ({}, "runtime.num_inference_per_prompt"),
    "n under fixed": (policy(n=8), "runtime.stream_data_loader_type"),
    "relay without a function": (
        {"runtime": {**GROUPED, "max_relay_episode": -1}},
        "runtime.max_relay_episode: got -1; relay is on and needs a function",
    ),
    "relay without a function from the third episode on, where ChatLearn failed after two": (
        {"runtime": {**GROUPED, "num_episode": 3, "max_relay_episode": 1, "relay_episode_offset": 2}},
        "runtime.max_relay_episode: got 1; relay is on and needs a function",
    ),
}


@pytest.mark.parametrize("case", START)
def test_what_only_matters_at_the_start_loads_and_is_refused_then(run_of, case):
    sections, line = START[case]
    run = run_of(**sections)
    with pytest.raises(ConfigError) as caught:
        run.require_startable()
    assert line in str(caught.value)


def test_a_complete_run_is_startable(run_of):
    run_of(runtime=GROUPED).require_startable()


UNBUILT = {
    "ranking elsewhere": (
        {"runtime": GROUPED, **trainer(batch_generation={"ranking": True})},
        "models.ppo_policy.batch_generation",
    ),
}


@pytest.mark.parametrize("case", UNBUILT)
def test_an_option_that_nobody_carries_out_yet_loads_but_does_not_start(run_of, case):
    sections, path = UNBUILT[case]
    with pytest.raises(ConfigError, match=re.escape(path)) as caught:
        run_of(**sections).require_startable()
    assert "yet" in str(caught.value)


def test_a_switched_off_section_starts_and_so_do_adapters(run_of):
    run_of(runtime=GROUPED, **trainer(batch_generation={"ranking": False, "min_prompt_length": 0})).require_startable()
    run_of(runtime=GROUPED, **trainer(lora={"enable_lora": True, "lora_dim": 4})).require_startable()
