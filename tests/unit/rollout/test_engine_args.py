"""What a run file may add to the engine's arguments, and what it may not."""

from pathlib import Path
from typing import Any

import pytest

from baton.config.lora import LoraConfig
from baton.config.policy import PolicyConfig
from baton.errors import ConfigError

pytestmark = pytest.mark.slow  # importing vLLM takes more than five seconds


def arguments(**further: Any) -> Any:
    from services.rollout.engine_args import engine_args

    return engine_args(PolicyConfig(engine_args=further), Path("model"), 0)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("speculative_config", {"method": "ngram"}, "speculated tokens have no log-probabilities of the raw model"),
        ("spec_tokens", 3, "speculated tokens have no log-probabilities of the raw model"),
        ("data_parallel_size", 2, r"weights reach one engine per replica; .* set models\.policy\.num_replica"),
    ],
)
def test_what_would_make_samples_or_updates_wrong_is_refused_by_name_with_the_reason(
    name: str, value: Any, reason: str
) -> None:
    with pytest.raises(ConfigError, match=rf"models\.policy\.engine_args\.{name}: got .*; {reason}"):
        arguments(**{name: value})


def test_a_revision_of_a_tokenizer_that_is_a_directory_is_refused(tmp_path: Path) -> None:
    from services.rollout.engine import VllmEngine

    for tokenizer in (None, str(tmp_path)):
        with pytest.raises(ConfigError, match=r"models\.policy\.tokenizer_revision: got 'v1'; .* not had from a model hub"):
            VllmEngine(PolicyConfig(tokenizer=tokenizer, tokenizer_revision="v1"), tmp_path, 0)


def adapted(directory: Path, *, tied: bool, **lora: Any) -> Any:
    from transformers import LlamaConfig

    from services.rollout.engine_args import engine_args

    LlamaConfig(tie_word_embeddings=tied).save_pretrained(directory)
    further = lora.pop("engine_args", {})
    return engine_args(PolicyConfig(engine_args=further), directory, 0, LoraConfig(enable_lora=True, **lora))


@pytest.mark.parametrize(("rank", "room"), [(1, 8), (8, 8), (12, 16), (512, 512)])
def test_there_is_room_for_two_adapters_of_the_runs_rank(tmp_path: Path, rank: int, room: int) -> None:
    arguments = adapted(tmp_path, tied=True, lora_dim=rank)
    assert (arguments.enable_lora, arguments.max_lora_rank, arguments.max_loras) == (True, room, 2)


def test_only_what_the_run_adapts_has_room_for_an_adapter(tmp_path: Path) -> None:
    rows = adapted(tmp_path, tied=True, lora_layer="RowParallelLinear")
    assert rows.lora_target_modules == ["down_proj", "o_proj"]
    queries = adapted(tmp_path, tied=True, lora_layer="ColumnParallelLinear", column_only_qkv=True)
    assert queries.lora_target_modules == ["k_proj", "q_proj", "v_proj", "qkv_proj"]
    assert "lm_head" not in adapted(tmp_path, tied=True).lora_target_modules, "a head that is the embedding has no adapter"
    assert {"lm_head", "embed_tokens"} <= set(adapted(tmp_path, tied=False).lora_target_modules)


def test_a_rank_that_vllm_has_no_room_for_and_arguments_of_ones_own_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora_dim: got 513; .* at most 512; .*lora.sync to merged"):
        adapted(tmp_path, tied=True, lora_dim=513)
    with pytest.raises(ConfigError, match=r"engine_args.max_loras: got 8; Baton sets this one itself"):
        adapted(tmp_path, tied=True, engine_args={"max_loras": 8})


def test_a_kind_of_layer_that_vllm_does_not_adapt_is_named_with_the_way_out() -> None:
    from transformers import LlamaConfig

    from services.rollout.lora_args import check_adapted

    model, layers = LlamaConfig(tie_word_embeddings=True), "RowParallelLinear,VocabParallelEmbedding"
    linear = ["model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"]
    with pytest.raises(ConfigError, match=r"vLLM cannot adapt embed_tokens of this model; set it to merged"):
        check_adapted(LoraConfig(enable_lora=True, lora_layer=layers), model, linear)
    check_adapted(LoraConfig(enable_lora=True, lora_layer=layers), model, [*linear, "model.embed_tokens"])
    check_adapted(LoraConfig(enable_lora=True, lora_layer=layers, part_module_name="mlp"), model, linear)


def test_the_same_arguments_that_change_nothing_are_taken() -> None:
    assert arguments(data_parallel_size=1, speculative_config=None).data_parallel_size == 1
