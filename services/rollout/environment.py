"""What vLLM reads from the environment; set before it is imported."""

import os

from baton.config.policy import PolicyConfig


def prepare_environment(config: PolicyConfig) -> None:
    """Gives each of several workers on a CPU cores of its own, keeps vLLM from reporting usage, and with `enforce_eager`
    keeps torch from compiling (vLLM compiles a few helpers even then, which takes a C++ compiler and some 15 s). Values
    already set win."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if config.enforce_eager:
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    workers = config.tensor_model_parallel_size * config.pipeline_model_parallel_size
    if workers > len(os.sched_getaffinity(0)):
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    elif workers > 1:  # vLLM by itself wants a memory node for each worker
        os.environ.setdefault("VLLM_CPU_SIM_MULTI_NUMA", "1")
