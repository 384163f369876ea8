"""Turns a model into one whose adapters are trained and whose own weights are not."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from pydantic import ValidationError
from torch import nn

from baton.config.lora import LORA_LAYERS, LoraConfig
from baton.errors import ConfigError
from services.trainer.megatron.lora.adapters import Adapters
from services.trainer.megatron.lora.factors import is_adapted
from services.trainer.megatron.lora.layers import KINDS, LoraLayer
from services.trainer.megatron.lora.merged import CANNOT_MERGE, unties
from services.trainer.megatron.lora.projections import Makeup, makeup_of
from services.trainer.megatron.model import PolicyModel

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A layer that gets adapters, what it becomes, and the projections that are adapted."""

    layer: nn.Module
    becomes: type[LoraLayer]
    makeup: Makeup
    adapted: tuple[str, ...]


def convert_layer_to_lora(model: Model, *, config: LoraConfig | None = None, seed: int = 0, **options: Any) -> Model:
    """Gives the layers of `model` adapters, in place, and freezes all of its own parameters. Returns `model`.

    The options are `models.<name>.lora`'s: those of `config`, or its defaults, but for the ones given by name, as
    `lora_dim=16`. `part_module_name` is looked for in a layer's name in the whole model, as
    `decoder.layers.3.mlp.linear_fc1`, and in the Hugging Face names of its projections. With the same `seed` fresh adapters
    are the same under every layout.

    A tied output layer is left as it is, as in PEFT: only the embedding's own lookup has the embedding's adapter.

    Raises ConfigError for an option that is none or has no such value, and if the options choose no layer. On a pipeline
    stage of Baton's own models that is allowed, as the layers may be on another.
    """
    config = _options(config, options)
    chosen = list(_choose(model, config))
    if not chosen and not _is_stage(model):
        raise ConfigError(nothing_chosen(config))
    model.requires_grad_(False)
    for one in chosen:
        like = one.layer.weight
        adapters = Adapters(one.makeup, one.adapted, config, seed, like, embedding=one.becomes.embedding)
        one.becomes.convert(one.layer, adapters.train(one.layer.training))
    if isinstance(model, PolicyModel) and model.pre_process:
        model.embedding.register_forward_hook(_require_gradient)
    return model


def _options(config: LoraConfig | None, options: dict[str, Any]) -> LoraConfig:
    unknown = options.keys() - LoraConfig.model_fields.keys()
    if unknown:
        raise ConfigError(f"convert_layer_to_lora has no option {', '.join(unknown)}; see models.*.lora in docs/run-file.md")
    given = (config or LoraConfig()).model_dump() | options | {"enable_lora": True}
    try:
        return LoraConfig.model_validate(given)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, one['loc']))} {one['input']!r}: {one['msg']}" for one in error.errors())
        raise ConfigError(f"convert_layer_to_lora: {found}") from None


def require_adapters(model: PolicyModel, config: LoraConfig, option: str) -> None:
    """Raises ConfigError, on all ranks, if no pipeline stage has adapters, or if `config` wants merged weights of a model
    that cannot be merged. A collective over the pipeline."""
    group = parallel_state.get_pipeline_model_parallel_group()
    stages: list[Any] = [None] * group.size()
    dist.all_gather_object(stages, (is_adapted(model), unties(model)), group=group)
    if not any(adapted for adapted, _ in stages):
        raise ConfigError(f"{option}: {nothing_chosen(config)}")
    if "merged" in (config.sync, config.checkpoint) and any(untied for _, untied in stages):
        raise ConfigError(f"{option}: {CANNOT_MERGE}")


def nothing_chosen(config: LoraConfig) -> str:
    """What is wrong with options that choose no layer, and what to do."""
    part = f" whose name contains {config.part_module_name!r}" if config.part_module_name else ""
    only = ", of ColumnParallelLinear those of queries, keys and values only" if config.column_only_qkv else ""
    return (
        f"lora: the model has no layer of {', '.join(config.layers)}{part}{only}, so nothing would be trained; choose "
        f"others in lora_layer (of {', '.join(LORA_LAYERS)}), or another part_module_name, as self_attention or layers.3"
    )


def _is_stage(model: nn.Module) -> bool:
    return isinstance(model, PolicyModel) and model.config.pipeline_model_parallel_size > 1


def _choose(model: nn.Module, config: LoraConfig) -> Iterator[_Chosen]:
    kinds = {base: becomes for name in config.layers for base, becomes in KINDS[name]}
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            raise ConfigError(f"lora: {name} has adapters already; convert a model once")
        becomes = kinds.get(type(layer))
        if becomes is None or layer.weight is None or _is_tied_head(model, name):
            continue
        column = type(layer).__name__ == "ColumnParallelLinear"
        if column and config.column_only_qkv and not name.endswith(("linear_qkv", "query_key_value")):
            continue
        makeup = makeup_of(model, name, layer)
        part = config.part_module_name
        adapted = [one.name for one in makeup.projections if not part or part in one.name or part in whole_name(model, name)]
        if adapted:
            yield _Chosen(layer, becomes, makeup, tuple(adapted))


def _is_tied_head(model: nn.Module, name: str) -> bool:
    return name == "output_layer" and isinstance(model, PolicyModel) and model.share_embeddings_and_output_weights


def whole_name(model: nn.Module, name: str) -> str:
    """A layer's name in the whole model, of which a pipeline stage numbers its own layers from zero."""
    if not isinstance(model, PolicyModel):
        return name
    return re.sub(r"(?<=^decoder\.layers\.)\d+", lambda number: str(int(number[0]) + model.first_layer), name)


def _require_gradient(_layer: nn.Module, _inputs: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Of a frozen embedding: what is computed again in the backward pass, or sent to the next stage, needs one."""
    if torch.is_grad_enabled() and not hidden.requires_grad:
        hidden.requires_grad_()
    return hidden
