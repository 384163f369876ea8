"""What vLLM reads from the environment; set before it is imported."""

import atexit
import os
import tempfile

from baton.config.policy import PolicyConfig

_SHORT = 55
"""So long may the directory of temporary files be: a socket's path has at most 107 characters, 52 of them below that."""


def prepare_environment(config: PolicyConfig) -> None:
    """Gives each of several workers on a CPU cores of its own, keeps vLLM from reporting usage, has it start its processes
    anew, and with `enforce_eager` keeps torch from compiling (vLLM compiles a few helpers even then, which takes a C++
    compiler and some 15 s), and puts vLLM's sockets, which it leaves behind, into a directory that is removed at the end.
    Values already set win."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # a fork would have gRPC's locks, held by no thread of it
    if config.enforce_eager:
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    workers = config.tensor_model_parallel_size * config.pipeline_model_parallel_size
    if workers > len(os.sched_getaffinity(0)):
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    elif workers > 1:  # vLLM by itself wants a memory node for each worker
        os.environ.setdefault("VLLM_CPU_SIM_MULTI_NUMA", "1")
    if "VLLM_RPC_BASE_PATH" not in os.environ:
        place = None if len(tempfile.gettempdir()) <= _SHORT else "/tmp"
        sockets = tempfile.TemporaryDirectory(prefix="baton-", dir=place, ignore_cleanup_errors=True)
        atexit.register(sockets.cleanup)
        os.environ["VLLM_RPC_BASE_PATH"] = sockets.name
