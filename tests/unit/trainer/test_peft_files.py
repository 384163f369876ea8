"""What of PEFT's adapters is taken: plain LoRA, and nothing that PEFT itself would compute otherwise."""

from typing import Any

import pytest
from peft import LoraConfig as PeftConfig

from baton.config.lora import LoraConfig
from services.trainer.megatron.lora.peft_files import config_problems

OURS = LoraConfig(enable_lora=True, lora_dim=4, lora_scaling=8.0)


def written(**options: Any) -> dict[str, Any]:
    """PEFT's config of an adapter of our rank and scale."""
    return PeftConfig(r=4, lora_alpha=8, target_modules=["q_proj"]).to_dict() | options


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_an_adapter_that_began_beside_the_models_own_weights_is_plain(start: bool | str | None) -> None:
    assert list(config_problems(written(init_lora_weights=start), OURS)) == []


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "of tomorrow"])
def test_an_adapter_of_weights_that_its_start_has_changed_is_refused_with_the_way_out(start: str) -> None:
    (problem,) = config_problems(written(init_lora_weights=start), OURS)
    assert problem.startswith(f"init_lora_weights is {start!r}: ")
    assert "(save_pretrained, path_initial_model_for_weight_conversion), or take the merged model" in problem


VARIANTS = {
    "use_dora": True, "use_rslora": True, "rank_pattern": {"q_proj": 2}, "bias": "all", "use_qalora": True,
    "alora_invocation_tokens": [5, 6], "use_bdlora": {"nblocks": 2}, "arrow_config": {"top_k": 1},
    "kasa_config": {"beta": 1}, "monteclora_config": {"use_entropy": True}, "target_parameters": ["mlp.experts"],
    "trainable_token_indices": [7],
}  # fmt: skip


@pytest.mark.parametrize("option", VARIANTS)
def test_a_variant_is_refused_by_its_option(option: str) -> None:
    assert option in written()
    (problem,) = config_problems(written(**{option: VARIANTS[option]}), OURS)
    assert problem.startswith(f"{option} is {VARIANTS[option]!r}, and only ")
