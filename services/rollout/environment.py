"""What vLLM reads from the environment; set before it is imported."""

import os

from baton.config.policy import PolicyConfig


def prepare_environment(config: PolicyConfig) -> None:
    """Sizes the CPU's key-value cache, keeps vLLM from reporting usage, and with `enforce_eager` keeps torch from compiling
    (vLLM compiles a few helpers even then, which takes a C++ compiler and some 15 s). Values already set win."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(config.cpu_kv_cache_gib))
    if config.enforce_eager:
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
