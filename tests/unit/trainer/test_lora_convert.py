"""`convert_layer_to_lora` on layers of plain torch, and what it refuses. Models of Megatron's layers are in integration."""

import pytest
import torch
from torch import nn

from baton.config.lora import LoraConfig
from baton.errors import ConfigError
from services.trainer.megatron.lora import convert_layer_to_lora


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 6), nn.Sequential(nn.Linear(6, 5), nn.Tanh()), nn.Linear(5, 3, bias=False))


def filled(converted: nn.Module) -> nn.Module:
    """With factors of which none is zero."""
    with torch.no_grad():
        for parameter in converted.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    return converted


def trained(converted: nn.Module) -> set[str]:
    return {name for name, parameter in converted.named_parameters() if parameter.requires_grad}


def test_only_adapters_are_trained_and_fresh_ones_change_nothing():
    ids, before = torch.arange(7), model()
    converted = convert_layer_to_lora(model(), lora_dim=2)
    assert trained(converted) == {f"{name}.lora.{leaf}.lora_{letter}" for name, leaf in (
        ("0", "0"), ("1.0", "0"), ("2", "2"),
    ) for letter in "AB"}  # fmt: skip
    torch.testing.assert_close(converted(ids), before(ids))


def test_a_weight_is_updated_by_scaling_over_rank_times_b_a():
    ids, plain = torch.arange(7), model()
    converted = filled(convert_layer_to_lora(model(), config=LoraConfig(lora_dim=2, lora_scaling=3.0)))
    for name, place in (("0", 0), ("1.0", None), ("2", 2)):
        factors = next(iter(converted.get_submodule(name).lora.factors.values()))
        update = 1.5 * factors.lora_B @ factors.lora_A
        layer = plain.get_submodule(name)
        layer.weight.data += update.t() if place == 0 else update
    torch.testing.assert_close(converted(ids), plain(ids))


def test_a_part_of_the_name_and_the_kinds_choose_the_layers():
    assert {name.split(".lora.")[0] for name in trained(convert_layer_to_lora(model(), part_module_name="1."))} == {"1.0"}
    kinds = convert_layer_to_lora(model(), lora_layer="Embedding")
    assert {name.split(".lora.")[0] for name in trained(kinds)} == {"0"}


def test_the_same_seed_makes_the_same_adapters_and_another_one_others():
    first, again, other = (convert_layer_to_lora(model(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["2.lora.2.lora_A"], other["2.lora.2.lora_A"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"lora_dim": 0}, "lora_dim 0: Input should be greater than or equal to 1"),
        ({"lora_dim": -4}, "lora_dim -4: Input should be greater than or equal to 1"),
        ({"lora_layer": "Conv"}, "must be a comma-separated choice of ColumnParallelLinear"),
        ({"rank": 4}, "convert_layer_to_lora has no option rank"),
        ({"part_module_name": "attention"}, "no layer of ColumnParallelLinear, RowParallelLinear, LinearLayer"),
        ({"part_module_name": "attention"}, "whose name contains 'attention', so nothing would be trained"),
        ({"lora_layer": "RowParallelLinear"}, "the model has no layer of RowParallelLinear"),
    ],
)
def test_options_that_make_no_adapters_are_refused(options, told):
    with pytest.raises(ConfigError) as caught:
        convert_layer_to_lora(model(), **options)
    assert told in str(caught.value)


def test_a_model_is_converted_once():
    with pytest.raises(ConfigError, match="has adapters already; convert a model once"):
        convert_layer_to_lora(convert_layer_to_lora(model()))
