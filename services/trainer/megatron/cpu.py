"""Runs Megatron-Core on CPU: the one place that knows where Megatron names CUDA.

Megatron asks for CUDA by `torch.cuda.current_device()`, by `device="cuda"`, by `Tensor.cuda()` and by comparing
`Tensor.type()` with "torch.cuda.FloatTensor". Each is redirected once, before Megatron is imported, in processes that
train on CPU only.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

_FACTORIES = ("arange", "empty", "full", "ones", "rand", "randn", "tensor", "zeros", "zeros_like", "empty_like", "ones_like")


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return factory(*args, **kwargs)

    return make


def _is_news(record: logging.LogRecord) -> bool:
    """Whether to log it: Megatron warns when the CPU's random state changes where the GPU's is meant; here they are one."""
    return "CPU RNG state changed" not in record.getMessage()


def redirect_cuda_to_cpu() -> None:
    """Redirects every CUDA request of this process to the CPU. Call it before importing megatron."""
    cuda = torch.cuda
    cuda.current_device = lambda: "cpu"  # Megatron passes it on as `device=`
    for name in ("set_device", "synchronize", "empty_cache"):  # one function each: torch._dynamo refuses shared ones
        setattr(cuda, name, lambda *_args, **_kwargs: None)
    cuda.manual_seed = torch.manual_seed
    cuda.get_rng_state = lambda *_args, **_kwargs: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *_args, **_kwargs: torch.set_rng_state(state)
    cuda.FloatTensor, cuda.IntTensor = torch.FloatTensor, torch.IntTensor
    cuda.HalfTensor, cuda.BFloat16Tensor = torch.HalfTensor, torch.BFloat16Tensor
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    torch.Tensor.cuda = lambda self, *_args, **_kwargs: self

    named_type = torch.Tensor.type

    def cuda_type(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = named_type(self, *args, **kwargs)
        return answer.replace("torch.", "torch.cuda.", 1) if isinstance(answer, str) else answer

    torch.Tensor.type = cuda_type

    import megatron.core.tensor_parallel.random as megatron_random

    logging.getLogger(megatron_random.__name__).addFilter(_is_news)
    megatron_random._get_cuda_rng_state = lambda *_args, **_kwargs: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda state, *_args, **_kwargs: torch.set_rng_state(state)
