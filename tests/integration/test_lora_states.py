"""What of a model with adapters is saved, sent, shared and estimated, over two ranks."""

from pathlib import Path
from typing import Any

import lora_states_side
import numpy as np
import pytest
import torch

from baton.checkpoint_files import read_marker
from baton.cli import ckpt
from processes import free_port
from ranks import run_ranks
from services.trainer.megatron.checkpoint_pieces import Piece
from services.trainer.megatron.checkpoint_reader import CheckpointReader

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def ranks(directory: Path) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    lora_states_side.make_models(directory)
    return run_ranks(lora_states_side.work, 2, free_port(), directory, timeout_s=800)


@pytest.fixture(scope="module")
def found(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    return ranks[0]


@pytest.mark.parametrize("layout", ["pp2", "dp2"])
def test_training_goes_on_from_a_checkpoint_of_adapters_under_another_layout(found: dict[str, Any], layout: str) -> None:
    losses = found["checkpoints"]["losses"]
    assert losses[layout] == pytest.approx(losses["itself"], rel=1e-5, abs=1e-5)
    assert len({round(loss, 3) for loss in losses["itself"]}) == 2


def test_adams_count_is_kept_though_the_first_stage_trains_nothing(found: dict[str, Any]) -> None:
    losses = found["one stage"]
    assert losses["read"] == pytest.approx(losses["itself"], rel=1e-6)
    assert losses["itself"][0] != pytest.approx(losses["itself"][1], rel=1e-3)


def whole_tensors(path: Path) -> dict[str, torch.Tensor]:
    reader = CheckpointReader(path)
    tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in reader.tensors.items()}
    reader.read([
        Piece(name, tuple(tensor.shape), (0,) * tensor.dim(), tensor, writes=True) for name, tensor in tensors.items()
    ])  # fmt: skip
    return tensors


@pytest.mark.usefixtures("found")
def test_a_checkpoint_of_adapters_is_resharded_bit_for_bit(directory: Path) -> None:
    (source,), target = (directory / "adapter").glob("step-*"), directory / "deep"
    ckpt.reshard(source, target, tensor=1, pipeline=2, data=1)
    marker, expected = read_marker(target), read_marker(source)
    assert marker["layout"] == {"tensor": 1, "pipeline": 2, "data": 1} != expected["layout"]
    assert marker["roles"] == expected["roles"]
    before, after = whole_tensors(source), whole_tensors(target)
    assert any("lora_A" in name for name in before) and set(after) == set(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_checkpoint_of_adapters_holds_nothing_of_the_base(found: dict[str, Any]) -> None:
    sizes = found["checkpoints"]
    print(f"checkpoint: {sizes['bytes']} bytes with adapters, {sizes['bytes of all']} with all weights")
    assert sizes["bytes"] < sizes["bytes of all"] / 3  # 4 of at most 512 rows, and as many files


def test_adapters_of_another_rank_base_or_kind_are_refused_by_name(found: dict[str, Any]) -> None:
    told = found["checkpoints"]
    assert "InvalidRequestError" in told["of another rank"]
    assert "lora_dim was 4 and is 8" in told["of another rank"]
    assert "adapters of another base model than models.ppo_policy.model" in told["of another base"]
    assert "a run that trains adapters (lora) of ppo_policy, and this run trains all weights" in (
        told["into a run of all weights"]
    )
    assert "a run that trains all weights of ppo_policy, and this run trains adapters (lora)" in told["of all weights"]


def test_a_merged_checkpoint_is_the_model_with_its_adapters_and_changes_no_weight(found: dict[str, Any]) -> None:
    merged = found["merged checkpoint"]
    np.testing.assert_allclose(merged["read"], merged["written"], atol=1e-5)
    assert merged["resumed twice"] == "nothing was raised"
    np.testing.assert_allclose(merged["read twice"], merged["written"], atol=1e-5)
    assert np.abs(merged["written"] - merged["before"]).max() > 1e-3
    assert merged["base unchanged"]
    assert not any(values.any() for name, values in merged["factors"].items() if name.endswith("lora_B.weight"))
    assert "take VocabParallelEmbedding out of lora_layer" in merged["a tied embedding"]


def test_reference_and_critic_have_no_copy_of_the_policys_base(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["shared base"]["reference is the policy"]
        assert rank["shared base"]["the critic's own"] == ["output_layer.weight"]


def test_a_step_of_the_policy_changes_neither_reference_nor_critic(found: dict[str, Any]) -> None:
    scores = found["shared base"]["scores"]
    before, after = scores["before"], scores["after the policy's step"]
    assert np.abs(after["policy"] - before["reference"]).max() > 1e-3
    np.testing.assert_array_equal(after["reference"], before["reference"])
    np.testing.assert_array_equal(after["value"], before["value"])


def test_a_step_of_the_critic_changes_no_policy(found: dict[str, Any]) -> None:
    scores = found["shared base"]["scores"]
    before, after = scores["after the policy's step"], scores["after the critic's"]
    assert np.abs(after["value"] - before["value"]).max() > 1e-3
    np.testing.assert_array_equal(after["policy"], before["policy"])


def test_dropout_is_in_training_only_and_the_same_when_it_is_computed_again(found: dict[str, Any]) -> None:
    gradients, twice = found["dropout"]["gradients"], found["dropout"]["scored twice"]
    np.testing.assert_array_equal(*twice)
    for name, kept in gradients["kept"].items():
        np.testing.assert_allclose(gradients["computed again"][name], kept, atol=1e-6, err_msg=name)
    assert any(np.abs(gradients["of another seed"][name] - kept).max() > 1e-4 for name, kept in gradients["kept"].items())


@pytest.mark.parametrize("layout", ["tp2", "pp2"])
def test_all_ranks_together_send_each_adapter_once_under_pefts_names(found: dict[str, Any], layout: str) -> None:
    sent, factors = found["regions"][layout]["adapters"], found["regions"][layout]["factors"]
    assert sent.keys() == factors.keys()
    assert sent["model.layers.3.self_attn.k_proj.lora_A.weight"].shape == (4, 64)
    assert sent["model.layers.3.mlp.up_proj.lora_B.weight"].shape == (128, 4)
    assert sent["model.embed_tokens.lora_embedding_A"].shape == (4, 513)
    for name, values in factors.items():
        np.testing.assert_array_equal(sent[name], values)


@pytest.mark.parametrize("layout", ["tp2", "pp2"])
def test_merged_weights_are_sent_as_they_are_after_the_last_step(found: dict[str, Any], layout: str) -> None:
    sent, exported = found["regions"][layout]["merged"], found["regions"][layout]["exported"]
    assert sent.keys() == exported.keys()
    for name, values in exported.items():
        np.testing.assert_array_equal(sent[name], values, err_msg=name)


def test_the_estimate_counts_adapters_exactly(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for case, (held, estimated) in rank["estimates"].items():
            assert held == estimated, case
    assert any(held for rank in ranks for held, _ in rank["estimates"].values())
