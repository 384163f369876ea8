"""Adapters in PEFT's format, out and in: `adapter_config.json` beside `adapter_model.safetensors`.

Each rank writes its rectangles into a file of its own, out of which one rank makes the one of PEFT.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from baton.config.lora import LoraConfig
from baton.errors import ConfigError
from services.trainer.megatron.family import ModelShape
from services.trainer.megatron.heads import SCORE
from services.trainer.megatron.lora.base import base_fingerprint
from services.trainer.megatron.lora.factors import factors_of
from services.trainer.megatron.lora.merged import merged_weight
from services.trainer.megatron.model import PolicyModel
from services.trainer.megatron.parallel import Layout

log = logging.getLogger(__name__)
PREFIX = "base_model.model."
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_BASE, _RECTANGLES = "baton_base", "rectangles"
"""Metadata: the base model's fingerprint; of a rank's own file, where its parts belong."""
_NEEDED = {
    "peft_type": "LORA", "bias": "none", "use_rslora": False, "use_dora": False, "fan_in_fan_out": False,
    "rank_pattern": {}, "alpha_pattern": {}, "lora_bias": False, "layer_replication": None,
}  # fmt: skip
"""Options of PEFT that mean another adapter if they are set otherwise."""
_NO_VARIANT = _NEEDED | {"use_qalora": False} | dict.fromkeys((
    "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "target_parameters",
    "trainable_token_indices", "use_bdlora",
))  # fmt: skip
"""With those that only newer releases of PEFT know, so that they are not written."""
_PLAIN_STARTS = True, False, None, "gaussian", "eva", "orthogonal", "mica"
"""Values of `init_lora_weights` that leave the model's own weights as they are; others change them whenever PEFT loads."""


def write_part(model: PolicyModel, layout: Layout, partial: Path) -> int:
    """Writes this rank's factors into `partial`. Returns their bytes. `finish_adapter` follows on one rank, after all."""
    tensors, places = {}, {}
    for factor in factors_of(model):
        if (factor.sharded or layout.tensor_rank == 0) and not factor.name.startswith("score."):
            tensors[factor.name] = factor.matrix.cpu().contiguous()
            places[factor.name] = [factor.shape, factor.rows, factor.columns]
    if model.shape.scalar_head and model.post_process and layout.tensor_rank == 0:
        tensors[SCORE] = _head(model.output_layer)
        places[SCORE] = [list(tensors[SCORE].shape), [0, 1], [0, model.shape.hidden_size]]
    metadata = {_RECTANGLES: json.dumps(places)}
    save_file(tensors, partial / f"part-{layout.pipeline_rank:03d}-{layout.tensor_rank:03d}.safetensors", metadata)
    return sum(tensor.nbytes for tensor in tensors.values())


def _head(layer: nn.Module) -> torch.Tensor:
    """A scalar head with its adapter added: PEFT keeps such a head beside the adapters, whole."""
    weight = merged_weight(layer) if hasattr(layer, "lora") else layer.weight.data
    return weight.cpu().contiguous()


def finish_adapter(partial: Path, config: LoraConfig, shape: ModelShape, model: str, base: str) -> None:
    """Makes PEFT's two files of all ranks' parts. `model` is the base model's name, `base` its fingerprint."""
    whole: dict[str, torch.Tensor] = {}
    parts = sorted(partial.glob("part-*.safetensors"))
    for part in parts:
        with safe_open(part, "pt") as file:
            for name, (size, rows, columns) in json.loads(file.metadata()[_RECTANGLES]).items():
                tensor = file.get_tensor(name)
                held = whole.setdefault(PREFIX + name, tensor.new_empty(size))
                held[slice(*rows), slice(*columns)] = tensor
    save_file(whole, partial / WEIGHTS, {"format": "pt", _BASE: base})
    for part in parts:
        part.unlink()
    names = sorted(name.removeprefix(PREFIX) for name in whole)
    (partial / CONFIG).write_text(json.dumps(_peft_config(names, config, shape, model), indent=1))


def _peft_config(names: list[str], config: LoraConfig, shape: ModelShape, model: str) -> dict[str, Any]:
    modules = sorted({name.split(".lora_")[0] for name in names if ".lora_" in name})
    scalar, alpha = shape.scalar_head, config.lora_scaling
    return _NEEDED | {
        "task_type": "SEQ_CLS" if scalar else "CAUSAL_LM",
        "base_model_name_or_path": model, "inference_mode": True, "init_lora_weights": True,
        "r": config.lora_dim, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": _targets(modules, shape.num_layers), "modules_to_save": ["score"] if scalar else None,
    }  # fmt: skip


def _targets(modules: list[str], layers: int) -> list[str]:
    """The modules' last names if every layer has them, as people write them; else their whole names."""
    leaves = Counter(module.rpartition(".")[2] for module in modules if ".layers." in module)
    if any(count != layers for count in leaves.values()):
        return modules
    return sorted({module.rpartition(".")[2] for module in modules})


@torch.no_grad()
def load_adapter(
    model: PolicyModel, directory: Path, config: LoraConfig, source: Path, base: str, option: str
) -> None:  # fmt: skip
    """Fills the model's factors from a PEFT directory; projections that it does not have stay fresh. A collective over the
    pipeline. `base` is the fingerprint of the model's weights, which are those in `source`; `option` is what names the
    directory, for messages.

    Raises ConfigError, naming cause and fix, if the adapters have another shape, scale or base model than the model's, or
    are of modules that have none here.
    """
    if not (directory / WEIGHTS).is_file() or not (directory / CONFIG).is_file():
        raise ConfigError(f"{option}: {directory} lacks {CONFIG} or {WEIGHTS}; name a directory that PEFT or Baton wrote")
    found, where = json.loads((directory / CONFIG).read_text()), f"{option}: {directory}"
    for problem in config_problems(found, config):
        raise ConfigError(f"{where}: {problem}")
    with safe_open(directory / WEIGHTS, "pt") as file:
        told = (file.metadata() or {}).get(_BASE)
        remark = base_remark(told, found.get("base_model_name_or_path"), source, base, where)
        if remark and dist.get_rank() == 0:
            log.warning("%s", remark)
        names = {name for name in file.keys() if ".base_layer." not in name}  # noqa: SIM118 - no dictionary
        _refuse_unknown(names, set(_filled(model, file, names, where)), option, directory)


def base_remark(told: str | None, name: str | None, source: Path, base: str, where: str) -> str:
    """What is to be said of adapters whose base model is perhaps not that in `source`, of fingerprint `base`; "": nothing.
    `told` is the fingerprint that Baton writes with them, `name` what PEFT calls their base. `where` is for messages.

    Raises ConfigError if their base is another model for sure, by `told` or by the directory that `name` is.
    """
    if told is None and name and any(Path(name).glob("*.safetensors")):
        told = base_fingerprint(Path(name))
    if told not in (None, base):
        raise ConfigError(
            f"{where} holds adapters of another base model ({name}) than this run's ({source}); take the model that they "
            "were trained on"
        )
    if told is not None or not name or _is_called(source, name):
        return ""
    return f"{where} holds adapters of {name}, and this run's model is {source}: whether these are the same cannot be seen"


def _is_called(source: Path, name: str) -> bool:
    """Whether the directory has the name, or is that of the name in the hub's cache."""
    return source.name.lower() == Path(name).name.lower() or f"models--{name.replace('/', '--')}" in source.parts


def config_problems(found: dict[str, Any], config: LoraConfig) -> Iterator[str]:
    """What keeps an adapter of PEFT's config `found` from being one of `config`; nothing if it can be loaded."""
    for name, needed in _NO_VARIANT.items():
        if found.get(name) not in (needed, None):
            yield f"{name} is {found[name]!r}, and only {needed!r} can be loaded; save the adapter so"
    if (start := found.get("init_lora_weights")) not in _PLAIN_STARTS:
        yield (
            f"init_lora_weights is {start!r}: such an adapter is of weights that PEFT changes before it adds it; have PEFT "
            "make plain LoRA of it (save_pretrained, path_initial_model_for_weight_conversion), or take the merged model"
        )
    if found.get("r") != config.lora_dim:
        yield f"its rank r is {found.get('r')} and lora_dim is {config.lora_dim}; make lora_dim the same"
    if found.get("lora_alpha") != config.lora_scaling:
        yield (
            f"its lora_alpha is {found.get('lora_alpha')} and lora_scaling is {config.lora_scaling}; make lora_scaling the "
            "same"
        )
    if others := set(found.get("modules_to_save") or ()) - {"score"}:
        yield f"it replaces whole modules ({', '.join(sorted(others))}), which Baton does not load; save it without them"


def _filled(model: PolicyModel, file: Any, names: set[str], where: str) -> Iterator[str]:
    """Copies what the file has of this stage's factors; yields the names that it took."""
    for factor in factors_of(model):
        name = PREFIX + factor.name
        if name not in names:
            continue
        found = tuple(file.get_slice(name).get_shape())
        if found != tuple(factor.shape):
            raise ConfigError(
                f"{where}: {name} is {found}, and this model's is {tuple(factor.shape)}; the adapter is of another model"
            )
        factor.matrix.copy_(file.get_slice(name)[slice(*factor.rows), slice(*factor.columns)])
        yield name
    if PREFIX + SCORE in names and model.shape.scalar_head:
        if model.post_process:
            model.output_layer.weight.copy_(file.get_tensor(PREFIX + SCORE))
        yield PREFIX + SCORE


def _refuse_unknown(names: set[str], taken: set[str], option: str, directory: Path) -> None:
    group = parallel_state.get_pipeline_model_parallel_group()
    of_stages: list[Any] = [None] * group.size()
    dist.all_gather_object(of_stages, taken, group=group)
    if left := sorted(names.difference(*of_stages)):
        raise ConfigError(
            f"{option}: {directory} holds {left[0]} and {len(left) - 1} more that are of no layer which has adapters here; "
            "choose those layers by lora_layer and part_module_name, or take an adapter of this model"
        )
