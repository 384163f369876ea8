"""What may differ between a run's file and the one that it is resumed with: where and how fast things run, and how long;
nothing that changes what is trained on what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from baton.config.inert import INERT_OPTIONS
from baton.config.problems import show

if TYPE_CHECKING:
    from baton.config.run import RunConfig

FREE_SECTIONS = ("services", "deadlines", "logging", "store", "runtime_env")

FREE_OPTIONS = {
    "runtime": (
        "num_episode", "generation_batch_size", "train_micro_batch_size", "train_micro_batch_tokens", "memory_preflight",
        "save_episode_interval", "eval_episode_interval", "log_interval", "enable_resume_training", "data_checkpoint_path",
        "max_data_ckpt_nums", "load_data_checkpoint_iteration", "exp_name", "output_dir", "reproducible", "colocation",
        "coalesced_buffer_mb", "keep_checkpoints",
    ),
    "rewards": ("max_error_rate", "workers"),
    "models.*": (
        "model_config_file", "device", "num_gpu", "tensor_model_parallel_size", "pipeline_model_parallel_size",
        "expert_model_parallel_size", "data_parallel_size", "num_replica", "group", "omp_threads", "generation_batch_size",
        "max_num_batched_tokens", "max_num_seqs", "max_outstanding_responses", "block_size", "gpu_memory_utilization",
        "cpu_kv_cache_gib", "enforce_eager", "weight_staging_gib", "engine_args", "openai_args", "max_recorded_tokens",
        "batch_generation", "recompute_granularity", "recompute_num_layers", "sequence_parallel", "share_prefix",
        "pad_samples", "adaptive_parallel_strategy_on_checkpoint",
    ),
}  # fmt: skip
"""By section; of `models.*` for every role."""


def resume_problems(run: RunConfig, before: RunConfig) -> list[str]:
    """One line for each option that may not change, and that `run` has otherwise than `before`, the run that it goes on
    with."""
    return [
        f"{path}: got {show(new)}; the run that is resumed has {show(old)}; write that, or start another run"
        for path, new, old in _differences(run.model_dump(mode="json"), before.model_dump(mode="json"))
        if not _is_free(path)
    ]


def _differences(new: Any, old: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, new value, old value) of every option that differs; of a section that only one has, the section."""
    if isinstance(new, dict) and isinstance(old, dict):
        for key in {**old, **new}:
            yield from _differences(new.get(key), old.get(key), f"{path}.{key}" if path else key)
    elif new != old:
        yield path, new, old


def _is_free(path: str) -> bool:
    keys = path.split(".")
    if keys[0] in FREE_SECTIONS:
        return True
    depth = 2 if keys[0] == "models" else 1
    section = "models.*" if depth == 2 else keys[0]
    option = keys[depth] if len(keys) > depth else ""
    inert = {f"{'.'.join(keys[:depth])}.{option}", f"{section}.{option}"}
    return option in FREE_OPTIONS.get(section, ()) or not inert.isdisjoint(INERT_OPTIONS)
