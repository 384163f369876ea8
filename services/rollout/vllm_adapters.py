"""Low-rank adapters in vLLM's own manager, registered from memory: nothing of them is ever a file.

This module alone touches vLLM's LoRA classes (0.26 to 0.32 are known), in the engine's process and in its workers.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from vllm.lora.layers import BaseLayerWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.lora.request import LoRARequest

from baton.errors import InvalidRequestError
from services.rollout import vllm_lora_ops

SLOTS = 2
"""Adapters that an engine holds at once: the one that new requests get, and one more that arrives or is drained."""

_FIRST = (".lora_A.weight", ".lora_embedding_A")
_SECOND = (".lora_B.weight", ".lora_embedding_B")


def adapter_request(load: int) -> LoRARequest:
    """What has a request computed with the adapter that was the engine's load number so many. Blocks of the prefix cache are
    keyed by this name, so that no adapter reads what another computed."""
    name = f"baton-adapter-{load}"
    return LoRARequest(lora_name=name, lora_int_id=load, lora_path=f"/in-memory/{name}")


def register(manager: Any, load: int, tensors: Mapping[str, torch.Tensor], multiplier: float) -> list[str]:
    """Gives vLLM's worker-side manager the adapter and a slot of its own, and returns the modules that this worker adapts by
    it: those of its pipeline stage. The tensors, whole ones, are kept and changed.

    Raises InvalidRequestError for half an adapter of a module, and if all slots are taken.
    """
    vllm_lora_ops.install()
    held = manager.list_adapters()
    if len(held) >= SLOTS:
        raise InvalidRequestError(f"this engine holds adapters {sorted(held)} already, and has {SLOTS} places")
    layers = dict(_layers(tensors, multiplier))
    inner = manager._adapter_manager
    adapted = sorted(adapted_modules(manager) & layers.keys())  # before vLLM packs them
    inner.add_adapter(LoRAModel(load, max(layer.rank for layer in layers.values()), layers))
    inner.activate_adapter(load)
    return adapted


def drop(manager: Any, loads: Sequence[int] | None) -> None:
    """Frees these adapters, all of them if None; those that are not held are passed over."""
    inner = manager._adapter_manager
    for load in manager.list_adapters() if loads is None else loads:
        if load in inner.lora_index_to_id:  # vLLM leaves its numbers there; on a CPU requests without one read a slot, too
            for module in inner.modules.values():
                module.reset_lora(inner.lora_index_to_id.index(load))
        manager.remove_adapter(load)


def adapted_modules(manager: Any) -> set[str]:
    """Names, as in Hugging Face's models, of the modules that adapters can be of in this worker."""
    inner = manager._adapter_manager
    names: set[str] = set()
    for name in inner.modules:
        names.update(inner.packed_modules.get(name, (name,)))
    return names


@contextmanager
def base_alone(model: torch.nn.Module) -> Iterator[None]:
    """Around vLLM's loading of base weights: the model as if it were without adapters, whose layers are wrapped otherwise,
    under names of their own."""
    wrapped = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseLayerWithLoRA)]
    for name, module in wrapped:
        _put(model, name, module.base_layer)
    try:
        yield
    finally:
        for name, module in wrapped:
            _put(model, name, module)


def modules_of(names: Sequence[str]) -> set[str]:
    """The modules that these tensors of an adapter belong to. Raises InvalidRequestError for other names."""
    return {_parsed(name)[0] for name in names}


def _put(model: torch.nn.Module, name: str, module: torch.nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


def _layers(tensors: Mapping[str, torch.Tensor], multiplier: float) -> Iterator[tuple[str, LoRALayerWeights]]:
    factors: dict[str, dict[bool, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        module, is_first = _parsed(name)
        factors.setdefault(module, {})[is_first] = tensor
    for module, both in factors.items():
        if len(both) < 2:
            raise InvalidRequestError(f"the adapter of {module} has one factor without the other; send both, A and B")
        rank = both[True].shape[0]
        if both[False].shape[1] != rank:
            raise InvalidRequestError(
                f"the adapter of {module} has factors A {list(both[True].shape)} and B {list(both[False].shape)}, which "
                "have no rank in common; A is [rank, in] and B is [out, rank]"
            )
        yield module, LoRALayerWeights(module, rank, rank * multiplier, both[True], both[False], multiplier)


def _parsed(name: str) -> tuple[str, bool]:
    """Module, and whether it is the factor that its input meets first."""
    for is_first, endings in ((True, _FIRST), (False, _SECOND)):
        for ending in endings:
            if name.endswith(ending):
                return name.removesuffix(ending), is_first
    raise InvalidRequestError(f"{name} is no tensor of an adapter; those end in {', '.join(_FIRST + _SECOND)}")
