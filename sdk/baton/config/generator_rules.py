"""What each generator of `models.policy` does not carry out: a run that sets it would be another run than it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from baton.config.problems import problem

if TYPE_CHECKING:
    from baton.config.run import RunConfig

VLLM_ONLY = (
    "max_num_batched_tokens", "block_size", "gpu_memory_utilization", "cpu_kv_cache_gib", "vllm_load_format", "quantization",
    "tokenizer_revision", "tokenizer_mode", "weight_staging_gib", "engine_args", "use_beam_search",
    "prompt_logprobs",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "eval_presence_penalty", "eval_frequency_penalty",
    "eval_repetition_penalty",
)  # fmt: skip


LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.01, 2.0
"""Of vLLM, which would take the least one for a lower one without a word, and refuse each request above the most."""
MOST_RANK = 512
"""Of an adapter that vLLM has room for."""


def generator_problems(run: RunConfig) -> Iterator[str]:
    """One line for each option of `models.policy` that only the other generator has, and for adapters, temperatures and
    greedy groups that it lacks."""
    policy, lora = run.models.policy, run.models.ppo_policy.lora
    if lora.sends_adapter:
        if policy.generator == "megatron":
            yield problem(
                "models.ppo_policy.lora.sync",
                "adapter",
                "needs vLLM: static batches have no adapters",
                "set it to merged, or models.policy.generator to vllm",
            )
        elif lora.lora_dim > MOST_RANK:
            yield problem(
                "models.ppo_policy.lora.lora_dim",
                lora.lora_dim,
                f"must be at most {MOST_RANK} for vLLM to have room for the adapter",
                "lower it, or set models.ppo_policy.lora.sync to merged",
            )
    if policy.generator == "vllm":
        batches = policy.batch_generation
        if batches.ranking or batches.min_prompt_length:
            yield problem(
                "models.policy.batch_generation",
                batches.model_dump(exclude_unset=True),
                "is about static batches, which vLLM does not make",
                "set models.policy.generator to megatron, or leave it out",
            )
        for name in ("temperature", "eval_temperature"):
            value = getattr(policy, name)
            if value and not LEAST_TEMPERATURE <= value <= MOST_TEMPERATURE and not run.is_offline:
                yield problem(
                    f"models.policy.{name}",
                    value,
                    f"must be 0 (greedy), or from {LEAST_TEMPERATURE} to {MOST_TEMPERATURE:g}: vLLM samples at no other",
                    "change it, or set models.policy.generator to megatron",
                )
        return
    if policy.temperature == 0 and run.group_size > 1 and not run.is_offline:
        yield problem(
            "models.policy.temperature",
            policy.temperature,
            f"must be more than 0: static batches refuse {run.group_size} greedy responses to one prompt: all are equal",
            "raise it, set runtime.num_inference_per_prompt to 1, or models.policy.generator to vllm",
        )
    for name in VLLM_ONLY:
        value = getattr(policy, name)
        if name in policy.model_fields_set and value != type(policy).model_fields[name].get_default(
            call_default_factory=True
        ):
            yield problem(
                f"models.policy.{name}",
                value,
                "has no effect on static batches",
                "leave it out, or set models.policy.generator to vllm",
            )
