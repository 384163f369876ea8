"""Where each tensor goes in vLLM's own parameters, learnt by watching vLLM load the first set of weights.

vLLM's loaders know every family's layout (fused q, k and v; gate and up; shards; padding), and all that they do to a plain
model is to copy rectangles of tensors into rectangles of parameters. These copies are recorded once, and can be made again
without vLLM. Where anything else happened, or may happen after loading, there is no record, and vLLM loads every time.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from services.common.weight_sync.plan import Part, Region, as_matrix, matrix_size

PLAIN_METHODS = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
"""What these layers compute with is the very tensor that was loaded, on a GPU."""


def keeps_what_it_loads(model: torch.nn.Module) -> bool:
    """Whether nothing is done to parameters after they are loaded."""
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if method is not None and type(method) not in PLAIN_METHODS:
            return False
        if hasattr(module, "process_weights_after_loading") and type(module) is not Attention:
            return False
    return all(parameter.device.type == "cuda" for parameter in model.parameters())


class LayoutRecord(TorchDispatchMode):
    """The copies from watched tensors into one model's parameters."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self._parameters = {
            parameter.untyped_storage().data_ptr(): parameter for parameter in model.parameters() if parameter.numel()
        }
        self._sources: dict[int, tuple[str, torch.Tensor]] = {}
        self._filled: dict[int, list[tuple[int, int]]] = {pointer: [] for pointer in self._parameters}
        self._regions: list[Region] = []

    @contextmanager
    def watching(self, tensors: Sequence[tuple[str, torch.Tensor]]) -> Iterator[None]:
        """Around vLLM's loading of these whole tensors."""
        self._sources = {tensor.untyped_storage().data_ptr(): (name, tensor) for name, tensor in tensors}
        with self:
            yield
        self._sources = {}

    def regions(self) -> list[Region] | None:
        """What every element of every parameter is copied from; None if there is one of which that was not seen."""
        for pointer, parameter in self._parameters.items():
            end = 0
            for start, stop in sorted(self._filled[pointer]):
                if start > end:
                    return None
                end = max(end, stop)
            if end < parameter.numel():
                return None
        return self._regions

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.copy_.default:
            self._copied(args[0], args[1])
        elif func in (torch.ops.aten.fill_.Scalar, torch.ops.aten.zero_.default):
            self._fill(args[0])  # padding, which stays
        return answer

    def _copied(self, target: torch.Tensor, source: torch.Tensor) -> None:
        known = self._sources.get(source.untyped_storage().data_ptr())
        if known is None or target.shape != source.shape:
            return
        name, whole = known
        rectangle = _rectangle(whole, source)
        if rectangle is not None and self._fill(target):
            part = Part(name, whole.dtype, tuple(whole.shape), *rectangle)
            self._regions.append(Region(part, as_matrix(target.detach())))

    def _fill(self, target: torch.Tensor) -> bool:
        """Whether it is a contiguous piece of a parameter."""
        pointer = target.untyped_storage().data_ptr()
        if pointer not in self._parameters or not target.is_contiguous():
            return False
        start = target.storage_offset() - self._parameters[pointer].storage_offset()
        self._filled[pointer].append((start, start + target.numel()))
        return True


def _rectangle(whole: torch.Tensor, view: torch.Tensor) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Rows and columns of a view in the matrix of a contiguous tensor; None if it is none."""
    columns = matrix_size(whole.shape)[1]
    if view.dim() > 2 or (view.dim() == 2) != (whole.dim() == 2) or not whole.is_contiguous():
        return None
    matrix = as_matrix(view)
    if (matrix.shape[0] > 1 and matrix.stride(0) != columns) or (matrix.shape[1] > 1 and matrix.stride(1) != 1):
        return None
    row, column = divmod(view.storage_offset() - whole.storage_offset(), columns)
    return (row, row + matrix.shape[0]), (column, column + matrix.shape[1])
