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


def fused_on_cuda(*, at_least: int = 0) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compiles a function for calls whose first argument is on CUDA and has that many elements. It must hold pure tensor
    arithmetic. Such a call takes the CPU about 0.3 ms more, in which a small tensor is through all kernels."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.cache
        def compiled() -> Callable[..., Any]:
            torch._dynamo.config.recompile_limit = _VARIANTS
            return torch.compile(function)

        @functools.wraps(function)
        def call(first: torch.Tensor, *args: Any) -> Any:
            fuse = first.is_cuda and first.numel() >= at_least and can_fuse()
            return (compiled() if fuse else function)(first, *args)

        return call

    return decorate
