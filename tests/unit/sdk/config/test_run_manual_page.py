"""Every YAML block of the manual page that Baton's run file follows loads as it stands there."""

import textwrap

import pytest

from baton.config import load_run

MINIMAL = """
runtime:
    sample_per_episode: 64
    num_inference_per_prompt: 8
    train_micro_batch_size: 4
    train_global_batch_size: 16
models:
    policy:
        max_new_tokens: 16
"""

STREAM = """
    runtime:
        # one of ["fixed", "dynamic"]
        stream_data_loader_type: fixed
        #: max number of relay episodes, if `max_relay_episode` is set to -1, then relay all episodes
        #: if `max_relay_episode` is set to 0, then relay is disabled
        max_relay_episode: int = 0
        #: relay after n episodes
        relay_episode_offset: int = 0
"""

LORA = """
    models:
        ppo_policy:
            model_config_file: ppo_policy.yaml
            trainable: True
            lora:
              enable_lora: True
              lora_dim: 64
              lora_layer: ColumnParallelLinear,LinearLayer,RowParallelLinear
              lora_dropout: 0.05
"""

BATCH_GENERATION = """
    models:
        policy:
            model_config_file: policy_inference.yaml
            trainable: False
            batch_generation:
              ranking: True
              min_prompt_length: ${batch_generation_min_prompt_length:0}
"""

ADAPTIVE_CHECKPOINT = """
    # Whether to enable adaptive checkpoint, default: True
    adaptive_parallel_strategy_on_checkpoint: True
"""


def compose(files, block, **others):
    """A run file that includes the minimal one and is otherwise the block itself."""
    return files(run="includes: [minimal.yaml]\n" + textwrap.dedent(block), minimal=MINIMAL, **others)


def test_stream_block_loads_once_its_type_notation_is_a_value(files):
    cfg = load_run(compose(files, STREAM.replace("int = 0", "0")))
    assert cfg.runtime.stream_data_loader_type == "fixed"
    assert (cfg.runtime.max_relay_episode, cfg.runtime.relay_episode_offset) == (0, 0)


def test_type_notation_copied_from_the_manual_is_answered_with_the_value_to_write(files, error_of):
    message = error_of(compose(files, STREAM))
    assert 'runtime.max_relay_episode: got "int = 0"; must be a whole number; write 0;' in message
    assert 'runtime.relay_episode_offset: got "int = 0"' in message


def test_lora_block_loads_with_its_model_file(files):
    cfg = load_run(compose(files, LORA, ppo_policy="lr: 2.4e-7\ntrainable: false\nlora: {lora_scaling: 32}\n"))
    trainer = cfg.models.ppo_policy
    assert trainer.trainable is True
    assert trainer.lora.enable_lora is True
    assert trainer.lora.lora_dim == 64
    assert trainer.lora.layers == ("ColumnParallelLinear", "LinearLayer", "RowParallelLinear")
    assert trainer.lora.lora_dropout == 0.05
    assert trainer.lora.multiplier == 0.5
    assert trainer.lr == 2.4e-7


@pytest.mark.parametrize(("variable", "expected"), [(None, 0), ("24", 24)])
def test_batch_generation_block_takes_its_limit_from_the_environment(files, monkeypatch, variable, expected):
    monkeypatch.delenv("batch_generation_min_prompt_length", raising=False)
    if variable is not None:
        monkeypatch.setenv("batch_generation_min_prompt_length", variable)
    cfg = load_run(compose(files, BATCH_GENERATION, policy_inference="top_p: 0.9\n"))
    assert cfg.models.policy.batch_generation.ranking is True
    assert cfg.models.policy.batch_generation.min_prompt_length == expected
    assert cfg.models.policy.top_p == 0.9


@pytest.mark.parametrize("value", ["True", "False"])
def test_adaptive_checkpoint_block_loads_as_a_model_file(files, value):
    block = textwrap.dedent(ADAPTIVE_CHECKPOINT.replace("True\n", f"{value}\n"))
    cfg = load_run(compose(files, LORA, ppo_policy=block))
    assert cfg.models.ppo_policy.adaptive_parallel_strategy_on_checkpoint is (value == "True")


def test_every_sampling_scheduler_and_cache_option_of_the_manual_is_known(files):
    policy = """
        n: 2
        ignore_eos: True
        top_p: 0.8
        top_k: 40
        temperature: 0.7
        use_beam_search: False
        eval_temperature: 0
        eval_top_k: 1
        eval_top_p: 0.5
        stop_token_list: <EOS>;</s>
        new_token_limit: True
        prompt_logprobs: 0
        max_num_batched_tokens: 32768
        max_paddings: 512
        block_size: 16
        gpu_memory_utilization: 0.5
        tokenizer: /models/llama2
    """
    cfg = load_run(compose(files, BATCH_GENERATION, policy_inference=policy))
    assert cfg.models.policy.stop_tokens == ("<EOS>", "</s>")
    assert cfg.models.policy.response_limit == 16
    assert cfg.models.policy.for_evaluation().temperature == 0
    assert cfg.model_name("ppo_policy") == "/models/llama2"
    assert list(cfg.inert_options()) == ["models.policy.max_paddings"]


def test_a_run_file_with_only_runtime_and_models_loads(files):
    cfg = load_run(files(run="runtime: {}\nmodels: {}\n"))
    assert cfg.prompts.source == "app"
    assert cfg.algorithm.name == "grpo"
    assert cfg.model_name("policy") == "smollm2-135m-instruct"
