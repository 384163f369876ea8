"""What of PEFT's adapters is taken: plain LoRA, and nothing that PEFT itself would compute otherwise."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from baton.config.lora import LoraConfig
from baton.errors import ConfigError
from models import make_model
from services.trainer.megatron.lora.base import base_fingerprint
from services.trainer.megatron.lora.peft_files import base_remark, config_problems, load_adapter

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


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and another of its shape."""
    directory = tmp_path_factory.mktemp("bases")
    return make_model(directory / "own"), make_model(directory / "other", seed=1)


def test_an_adapter_that_peft_wrote_on_another_model_of_the_shape_is_refused_by_both_names(
    bases: tuple[Path, Path], tmp_path: Path
) -> None:
    own, other = bases
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(other), PeftConfig(r=4, lora_alpha=8))
    adapted.save_pretrained(tmp_path)
    told = re.escape(f"lora.load: {tmp_path} holds adapters of another base model ({other}) than this run's ({own});")
    with pytest.raises(ConfigError, match=told):
        load_adapter(nn.Module(), tmp_path, OURS, own, base_fingerprint(own), "lora.load")


def test_a_copy_of_the_model_is_the_same_base(bases: tuple[Path, Path], tmp_path: Path) -> None:
    own, _ = bases
    copy = shutil.copytree(own, tmp_path / "copy")
    assert base_remark(None, str(copy), own, base_fingerprint(own), "lora.load") == ""


@pytest.mark.parametrize(
    ("name", "source", "remarked"),
    [
        ("HuggingFaceTB/SmolLM2-135M", "smollm2-135m-instruct", True),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-instruct", False),
        ("Qwen/Qwen2.5-0.5B", "hub/models--Qwen--Qwen2.5-0.5B/snapshots/0a1b", False),
        ("Qwen/Qwen2.5-0.5B-Instruct", "hub/models--Qwen--Qwen2.5-0.5B/snapshots/0a1b", True),
        ("/elsewhere/model", "here/model", False),
        (None, "model", False),
    ],
)
def test_where_the_base_cannot_be_compared_another_name_is_remarked(name: str | None, source: str, remarked: bool) -> None:
    remark = base_remark(None, name, Path(source), "a fingerprint", "lora.load")
    assert bool(remark) == remarked
    assert not remarked or (name in remark and source in remark)
