"""The rules that tie options together: batches, models, sampling, and what a run needs before it can
start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from baton.config.algorithm_rules import algorithm_problems, group_size_problems
from baton.config.budget_rules import budget_problems
from baton.config.generator_rules import generator_problems
from baton.config.groups import group_problems
from baton.config.idle_rules import idle_problems
from baton.config.needs import need_problems
from baton.config.placement_rules import placement_problems, service_problems
from baton.config.problems import problem
from baton.config.sampling import WHOLE
from baton.config.unbuilt import unbuilt_problems

if TYPE_CHECKING:
    from baton.config.run import RunConfig

# vLLM's name of an engine argument -> the option of models.policy that sets it.
_ENGINE_ARGUMENTS = {
    "model": "model",
    "tokenizer": "tokenizer",
    "dtype": "dtype",
    "trust_remote_code": "trust_remote_code",
    "max_model_len": "seq_length",
    "tensor_parallel_size": "tensor_model_parallel_size",
    "pipeline_parallel_size": "pipeline_model_parallel_size",
    "load_format": "vllm_load_format",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "max_num_seqs": "max_num_seqs",
    "block_size": "block_size",
    "gpu_memory_utilization": "gpu_memory_utilization",
    "enforce_eager": "enforce_eager",
    "seed": "seed",
    "quantization": "quantization",
    "revision": "revision",
    "tokenizer_revision": "tokenizer_revision",
    "tokenizer_mode": "tokenizer_mode",
}

_BEAM_LACKS = (*WHOLE, *(f"eval_{name}" for name in WHOLE), "stop_token_list", "prompt_logprobs")


def broken_rules(run: RunConfig) -> list[str]:
    """One line for each rule between options that `run`, whose sections are valid by themselves, breaks."""
    problems = [
        *_batches(run),
        *_requests(run),
        *_models(run),
        *_optimizers(run),
        *_sampling(run),
        *_data(run),
        *algorithm_problems(run.algorithm),
    ]
    if "algorithm" in run.model_fields_set:  # a file without it may leave the choice to its engine
        problems += group_size_problems(run)
    return [*problems, *placement_problems(run), *group_problems(run), *service_problems(run)]


def broken_start_rules(run: RunConfig, has_relay_sample_fn: bool) -> list[str]:
    """One line for each reason why a run that loads cannot train."""
    problems = [
        *group_size_problems(run),
        *_fixed_totals(run),
        *need_problems(run),
        *unbuilt_problems(run),
        *generator_problems(run),
        *budget_problems(run),
    ]
    runtime = run.runtime
    if runtime.relay_enabled and runtime.relay_sample_fn is None and not has_relay_sample_fn:
        problems.append(
            problem(
                "runtime.max_relay_episode",
                runtime.max_relay_episode,
                "relay is on and needs a function that picks samples",
                "call engine.set_relay_sample_fn, or name a built-in in runtime.relay_sample_fn, as concat",
            )
        )
    return problems


def _batches(run: RunConfig) -> Iterator[str]:
    runtime, trainer = run.runtime, run.models.ppo_policy
    micro, total, episode = (
        runtime.train_micro_batch_size,
        runtime.global_batch_size,
        runtime.sample_per_episode,
    )
    path = "runtime.train_global_batch_size"
    share = micro * trainer.data_parallel_size
    if total % micro:
        yield problem(
            path,
            total,
            f"must be a multiple of runtime.train_micro_batch_size ({micro})",
            f"write {_round_up(total, micro)}",
        )
    elif total % share:
        yield problem(
            path,
            total,
            f"must be a multiple of runtime.train_micro_batch_size x the data-parallel size "
            f"({micro} x {trainer.data_parallel_size})",
            f"write {_round_up(total, share)}",
        )
    samples = episode * run.models.policy.n
    if total > samples and runtime.stream_data_loader_type == "fixed":  # a dynamic one's are not known beforehand
        yield problem(
            path,
            total,
            f"must be at most runtime.sample_per_episode x models.policy.n ({samples})",
            "lower it (left out, it is the micro-batch size), or raise sample_per_episode",
        )
    repeats = runtime.num_inference_per_prompt
    if episode % repeats:
        yield problem(
            "runtime.sample_per_episode",
            episode,
            f"must be a multiple of runtime.num_inference_per_prompt ({repeats})",
            f"write {_round_up(episode, repeats)}",
        )


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _requests(run: RunConfig) -> Iterator[str]:
    """Every replica must get a full request; a default that is too large is lowered instead."""
    episode = run.runtime.sample_per_episode
    is_set = "generation_batch_size" in run.runtime.model_fields_set
    for name, role in run.models.roles().items():
        if role.generation_batch_size > 0:
            path, size = f"models.{name}.generation_batch_size", role.generation_batch_size
        elif is_set and not role.trainable:
            path, size = "runtime.generation_batch_size", run.runtime.generation_batch_size
        else:
            continue
        if size * role.num_replica > episode:
            most = episode // role.num_replica
            yield problem(
                path,
                size,
                f"times the {role.num_replica} replica(s) of models.{name} must be at most "
                f"runtime.sample_per_episode ({episode})",
                f"write at most {most}" if most else "raise sample_per_episode, or have fewer replicas",
            )


def _models(run: RunConfig) -> Iterator[str]:
    models = run.models
    policy = run.model_name("policy")
    if models.ppo_policy.model is not None and models.ppo_policy.model != policy:
        yield problem(
            "models.ppo_policy.model",
            models.ppo_policy.model,
            f"must be the model of models.policy ({policy})",
            "remove it, or make both the same",
        )
    if models.reward is not None and models.reward.model is None:
        yield "models.reward.model: is missing; a reward model must be named; add its directory or hub id"
    for name, role in models.roles().items():
        if role.lora.enable_lora and not name.startswith("ppo_"):
            yield problem(
                f"models.{name}.lora.enable_lora",
                True,
                "must be false: only a trained model has adapters",
                "set it in models.ppo_policy; the rollout follows by itself",
            )
    lora = models.ppo_policy.lora
    if lora.sends_adapter and lora.checkpoint == "merged":
        yield problem(
            "models.ppo_policy.lora.checkpoint",
            lora.checkpoint,
            "needs models.ppo_policy.lora.sync merged: a run that goes on from merged weights has another base to send",
            "set both to merged, or both to adapter",
        )
    if models.ppo_value and models.ppo_value.lora.sync != "adapter":
        yield problem(
            "models.ppo_value.lora.sync", models.ppo_value.lora.sync, "has no effect: nothing of the critic is sent",
            "leave it out",
        )  # fmt: skip


def _optimizers(run: RunConfig) -> Iterator[str]:
    for name, trainer in (("ppo_policy", run.models.ppo_policy), ("ppo_value", run.models.ppo_value)):
        if trainer is None:
            continue
        yield from idle_problems(f"models.{name}", trainer)
        yield from idle_problems(f"models.{name}.lora", trainer.lora)
        if trainer.dtype == "float16":
            yield problem(
                f"models.{name}.dtype",
                trainer.dtype,
                "must be bfloat16 or float32: a trained model's losses are not scaled, as float16 needs",
                "write bfloat16",
            )
        if trainer.pad_samples and run.runtime.train_micro_batch_tokens:
            yield problem(
                f"models.{name}.pad_samples",
                True,
                "needs micro-batches by number of samples: runtime.train_micro_batch_tokens counts no padding",
                "remove one of the two",
            )
        if trainer.pad_samples and trainer.share_prefix and "share_prefix" in trainer.model_fields_set:
            yield problem(f"models.{name}.share_prefix", True, "must be false with pad_samples", "remove one of the two")
        if trainer.min_lr > trainer.lr:
            yield problem(f"models.{name}.min_lr", trainer.min_lr, f"must be at most lr ({trainer.lr})", "lower it")
        if trainer.lr_decay_iters is not None and trainer.lr_warmup_iters >= trainer.lr_decay_iters:
            yield problem(
                f"models.{name}.lr_warmup_iters",
                trainer.lr_warmup_iters,
                f"must be less than lr_decay_iters ({trainer.lr_decay_iters})",
                "lower it",
            )


def _sampling(run: RunConfig) -> Iterator[str]:
    policy = run.models.policy
    limit = policy.max_new_tokens
    if policy.new_token_limit and limit is None:
        yield problem("models.policy.new_token_limit", True, "needs models.policy.max_new_tokens", "add max_new_tokens")
    if limit is not None and limit >= policy.seq_length:
        yield problem(
            "models.policy.max_new_tokens",
            limit,
            f"must be less than seq_length ({policy.seq_length}), which covers the prompt too",
            "lower it, or raise seq_length",
        )
    if policy.n > 1 and policy.temperature == 0 and not policy.use_beam_search:
        yield problem(
            "models.policy.n",
            policy.n,
            "must be 1 at temperature 0, where all responses are the same",
            "raise the temperature, or set n to 1",
        )
    if policy.use_beam_search:
        for name in _BEAM_LACKS:
            value, default = getattr(policy, name), type(policy).model_fields[name].get_default()
            if value != default and value not in WHOLE.get(name.removeprefix("eval_"), ()):
                yield problem(f"models.policy.{name}", value, "has no effect on a beam search", "leave it out, or sample")
    for argument in policy.engine_args:
        if option := _ENGINE_ARGUMENTS.get(argument):
            yield problem(
                f"models.policy.engine_args.{argument}",
                policy.engine_args[argument],
                "has an option of its own",
                f"set models.policy.{option} instead",
            )


def _data(run: RunConfig) -> Iterator[str]:
    runtime, prompts = run.runtime, run.prompts
    if prompts.source == "jsonl" and runtime.data_path not in (None, prompts.path):
        yield problem(
            "runtime.data_path",
            runtime.data_path,
            f"must not differ from prompts.path ({prompts.path})",
            "remove one of the two",
        )


def _fixed_totals(run: RunConfig) -> Iterator[str]:
    if run.models.policy.n > 1 and run.runtime.stream_data_loader_type == "fixed":
        yield problem(
            "runtime.stream_data_loader_type",
            "fixed",
            f"must be dynamic: models.policy.n ({run.models.policy.n}) multiplies an episode's samples",
            "write dynamic, or repeat prompts with num_inference_per_prompt instead of n",
        )
