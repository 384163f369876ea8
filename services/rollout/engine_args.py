"""The run file's engine options as vLLM's arguments."""

import dataclasses
import difflib
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from vllm import AsyncEngineArgs
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.platforms import current_platform

from baton.config.lora import LoraConfig
from baton.config.policy import PolicyConfig
from baton.errors import ConfigError
from services.rollout.lora_args import lora_args
from services.rollout.vllm_plugin import BACKEND


def engine_args(config: PolicyConfig, model: Path, seed: int, lora: LoraConfig | None = None) -> AsyncEngineArgs:
    """What one replica's engine is made with; `lora`: the adapters that it is sent, if it is.

    Raises ConfigError for a further argument that vLLM does not have, or that an option or Baton itself sets.
    """
    by_option: dict[str, Any] = {
        "tokenizer": config.tokenizer,
        "dtype": config.dtype,
        "max_model_len": config.seq_length,
        "tensor_parallel_size": config.tensor_model_parallel_size,
        "pipeline_parallel_size": config.pipeline_model_parallel_size,
        "enforce_eager": config.enforce_eager,
        "load_format": config.vllm_load_format,
        "quantization": config.quantization,
        "tokenizer_revision": config.tokenizer_revision,
        "tokenizer_mode": config.tokenizer_mode,
        "trust_remote_code": config.trust_remote_code,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "max_num_seqs": config.max_num_seqs,
        "block_size": config.block_size,
    }
    by_option |= _cache_size(config)
    ours: dict[str, Any] = {
        "model": str(model),
        "seed": seed,
        "logprobs_mode": "processed_logprobs",  # of the distribution that was sampled from; see vllm_sampler for the other
        "disable_log_stats": True,
        "override_generation_config": _defaults(config),
        "max_logprobs": -1,  # a beam asks for two to each of its responses
        "weight_transfer_config": WeightTransferConfig(backend=BACKEND),
        "worker_extension_cls": "services.rollout.vllm_worker.BatonWorker",
    }
    if lora is not None:
        ours |= lora_args(lora, AutoConfig.from_pretrained(model, trust_remote_code=config.trust_remote_code))
    _check(config.engine_args, by_option, ours)
    given = {name: value for name, value in (by_option | ours).items() if value is not None}
    return AsyncEngineArgs(**{"enable_prefix_caching": True} | given | config.engine_args)


def _cache_size(config: PolicyConfig) -> dict[str, Any]:
    """On the CPU each worker's part: they share one memory, of which vLLM would give as much to every one."""
    if not current_platform.is_cpu():
        return {"gpu_memory_utilization": config.gpu_memory_utilization}
    workers = config.tensor_model_parallel_size * config.pipeline_model_parallel_size
    if config.cpu_kv_cache_gib is None:
        return {"gpu_memory_utilization": config.gpu_memory_utilization / workers}
    return {"kv_cache_memory_bytes": (config.cpu_kv_cache_gib << 30) // workers}


def _defaults(config: PolicyConfig) -> dict[str, Any]:
    """What vLLM's own server takes for options that a request leaves out."""
    names = ("temperature", "top_p", "top_k", "repetition_penalty", "presence_penalty", "frequency_penalty")
    limit = {} if config.response_limit is None else {"max_new_tokens": config.response_limit}
    return {name: getattr(config, name) for name in names} | limit


_SPECULATION = ("speculative_config", "spec_method", "spec_model", "spec_tokens")
"""Arguments that have vLLM accept a draft's tokens."""


def _check(further: dict[str, Any], by_option: dict[str, Any], ours: dict[str, Any]) -> None:
    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    for name, value in further.items():
        where = f"models.policy.engine_args.{name}: got {value!r}"
        if name in ours:
            raise ConfigError(f"{where}; Baton sets this one itself, for it to sample and to take weights; leave it out")
        if name in by_option:
            raise ConfigError(f"{where}; models.policy has an option for this; set that one, so that all services know it")
        if name in _SPECULATION and value is not None:
            raise ConfigError(f"{where}; speculated tokens have no log-probabilities of the raw model; leave it out")
        if name == "data_parallel_size" and value != 1:
            raise ConfigError(
                f"{where}; weights reach one engine per replica; leave it out, and set models.policy.num_replica"
            )
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(f"{where}; vLLM has no such argument{f', but {near[0]}' if near else ''}; correct the name")
