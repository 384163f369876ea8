"""Loading whole tensors into a running engine by vLLM's own loaders, layer by layer: what works for every model.

This module alone touches what vLLM does not promise to keep from one version to the next (0.26 to 0.32 are known).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from vllm.config import ModelConfig
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import _place_kernel_tensors, get_layerwise_info


@contextmanager
def reloading(model: torch.nn.Module, config: ModelConfig) -> Iterator[None]:
    """Around `model.load_weights`, as often as it takes for all tensors. Within, every layer has the layout of a checkpoint;
    afterwards, its tensors are where compiled code expects them, with what the layer makes of them."""
    _drop_unfinished(model)
    initialize_layerwise_reload(model)
    yield
    finalize_layerwise_reload(model, config)
    if next(model.parameters()).device.type == "cpu":
        _repack_tied_heads(model)


def _drop_unfinished(model: torch.nn.Module) -> None:
    """Forgets what an update that broke off has left, and gives every layer the tensors back that the engine runs with.

    vLLM collects the parts of a fused layer (q, k and v; gate and up), counts their elements, and fills the layer when all
    are there. A new update skips layers that still collect: old parts would count as new ones, and the layer would be filled
    before its last part has come, while the digest, which is of what was received, is right.
    """
    for layer in model.modules():
        info = get_layerwise_info(layer)
        if not info.can_load():  # it collects nothing: filled, or no update began
            continue
        if info.kernel_tensors is not None:
            _place_kernel_tensors(layer, info)
        info.reset()


def _repack_tied_heads(model: torch.nn.Module) -> None:
    """On CPU every layer multiplies with a packed copy of its weight, made when the weight is loaded. An output layer that
    is tied to the embedding is never loaded itself: without this its copy would stay that of the first weights."""
    embeddings = {
        module.weight.data_ptr()
        for module in model.modules()
        if isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
    }
    for module in model.modules():
        if isinstance(module, ParallelLMHead) and module.weight.data_ptr() in embeddings:
            module.quant_method.process_weights_after_loading(module)
