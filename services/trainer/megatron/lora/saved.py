"""What a checkpoint of a model with adapters holds: the adapters, or the weights with the adapters added; never both.

Factors are saved under their names in PEFT, whole and unfused, so that they load under every layout.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.optimizer.optimizer import ChainedOptimizer
from megatron.core.utils import make_sharded_tensor_for_checkpoint, make_tp_sharded_tensor_for_checkpoint

from baton.config.lora import LoraConfig
from baton.errors import InvalidRequestError
from services.trainer.megatron.heads import SCORE
from services.trainer.megatron.lora.factors import Factor, factors_of, lora_layers
from services.trainer.megatron.lora.merged import merged_weight, require_mergeable
from services.trainer.megatron.model import PolicyModel

_HEAD = "output_layer.weight"


def adapter_state(model: PolicyModel) -> ShardedStateDict:
    """The factors by their parameters' names; and a scalar head, which the base model may lack."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state = {names[id(factor.parameter)]: _sharded(factor) for factor in factors_of(model)}
    if model.shape.scalar_head and model.post_process:
        state[_HEAD] = make_sharded_tensor_for_checkpoint(model.output_layer.weight, SCORE)
    return state


def _sharded(factor: Factor) -> Any:
    if not factor.sharded:
        return make_sharded_tensor_for_checkpoint(factor.parameter, factor.name)
    return make_tp_sharded_tensor_for_checkpoint(
        factor.parameter, factor.name, tp_axis=factor.parameter.partition_dim, allow_shape_mismatch=factor.of_vocabulary
    )


def merged_state(model: PolicyModel) -> ShardedStateDict:
    """The model's own state with merged weights, as copies on the CPU. Raises ConfigError if there can be none."""
    state = {name: part for name, part in model.sharded_state_dict().items() if ".lora." not in name}
    for name, layer in lora_layers(model):
        require_mergeable(model, layer)
        weight = f"{name}.weight"
        state[weight] = replace(state[weight], data=merged_weight(layer).cpu())
    return state


def restore_merged(model: PolicyModel, state: Mapping[str, Any], seed: int) -> None:
    """Takes what was read into `merged_state` as the model's own weights; the adapters begin anew."""
    for name, layer in lora_layers(model):
        layer.weight.data.copy_(state[f"{name}.weight"].data)
        for factors in layer.lora.factors.values():
            factors.reset(seed)


def begin_anew(optimizer: ChainedOptimizer) -> None:
    """Forgets Adam's moments and counts, and takes the model's parameters as they are."""
    for part in optimizer.chained_optimizers:
        if part.is_stub_optimizer:
            continue
        for state in part.optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()
        part.reload_model_params()


def lora_facts(config: LoraConfig, base: str) -> dict[str, Any]:
    """What a checkpoint says of the adapters that it is of; {} without them. `base`: the base model's fingerprint."""
    if not config.enable_lora:
        return {}
    kinds = ",".join(sorted(config.layers))
    return {
        "checkpoint": config.checkpoint, "lora_dim": config.lora_dim, "lora_scaling": config.lora_scaling,
        "lora_layer": kinds, "part_module_name": config.part_module_name, "column_only_qkv": config.column_only_qkv,
        "base": base,
    }  # fmt: skip


def check_facts(role: str, own: Mapping[str, Any], theirs: Mapping[str, Any], path: Path) -> None:
    """Raises InvalidRequestError, naming all that differs, if a checkpoint is of other adapters than the run's."""
    if bool(own) != bool(theirs):
        kinds = {True: "trains adapters (lora)", False: "trains all weights"}
        raise InvalidRequestError(
            f"{path} is of a run that {kinds[bool(theirs)]} of {role}, and this run {kinds[bool(own)]}; set "
            f"models.{role}.lora as it was there"
        )
    if own and own["base"] != theirs["base"]:
        raise InvalidRequestError(
            f"{path} holds adapters of another base model than models.{role}.model; take the model that they were trained on"
        )
    different = [f"{name} was {theirs[name]} and is {value}" for name, value in own.items() if theirs[name] != value]
    if different:
        raise InvalidRequestError(
            f"{path} holds other adapters than models.{role}.lora says: {'; '.join(different)}; make them the same"
        )
