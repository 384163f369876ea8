"""Chains of pointwise operations as one kernel on CUDA; on a CPU the same function runs as it is written."""

import functools
from collections.abc import Callable
from typing import Any

import torch

_VARIANTS = 64
"""Kernels of one function, by which sizes are fixed and whether gradients are wanted. Torch's own limit is 8."""


@functools.cache
def can_fuse() -> bool:
    """Whether torch can compile kernels for this machine's CUDA device. (On a CPU it would ask for a C++ compiler.)"""
    from torch.utils._triton import has_triton

    return torch.cuda.is_available() and has_triton()


def fused_on_cuda(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles `function` for calls whose first argument is on CUDA. It must hold pure tensor arithmetic."""

    @functools.cache
    def compiled() -> Callable[..., Any]:
        torch._dynamo.config.recompile_limit = _VARIANTS
        return torch.compile(function)

    @functools.wraps(function)
    def call(first: torch.Tensor, *args: Any) -> Any:
        return (compiled() if first.is_cuda and can_fuse() else function)(first, *args)

    return call
