"""What an algorithm needs before it can train: which models, and which data. Asked when a run starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from baton.config.algorithm import DpoConfig, OnlineDpoConfig, RewardModelConfig, SftConfig
from baton.config.idle_rules import rollout_problems
from baton.config.policy_gradient import GrpoConfig
from baton.config.ppo import PpoConfig
from baton.config.problems import problem

if TYPE_CHECKING:
    from baton.config.algorithm import AlgorithmConfig
    from baton.config.run import RunConfig

Offline = DpoConfig | SftConfig | RewardModelConfig
"""Trained on given answers: nothing is rolled out, and no weights are published."""
Paired = DpoConfig | RewardModelConfig
"""Trained on a chosen and a rejected answer each time."""


def need_problems(run: RunConfig) -> Iterator[str]:
    """One line for each thing that the run's algorithm lacks, or that has no place beside it."""
    yield from _roles(run)
    yield from _units(run)
    yield from _held_out(run)
    if isinstance(run.algorithm, Offline):
        yield from _offline(run)


def _reference_reason(algorithm: AlgorithmConfig) -> tuple[str, str]:
    """What a reference is needed for, and how to do without; empty: it is not needed, or there is no way without."""
    match algorithm:
        case GrpoConfig() if algorithm.kl_coef:
            return "algorithm.kl_coef weighs the divergence from it", "set algorithm.kl_coef to 0"
        case PpoConfig() if algorithm.init_kl_coef:
            return "algorithm.init_kl_coef weighs the divergence from it", "set algorithm.init_kl_coef to 0"
        case PpoConfig() if algorithm.lm_coef:
            return "algorithm.lm_coef weighs the reference's log-probabilities", "set algorithm.lm_coef to 0"
        case DpoConfig() | OnlineDpoConfig():
            return f"{algorithm.name} compares the policy with it", ""
    return "", ""


def _roles(run: RunConfig) -> Iterator[str]:
    models, algorithm = run.models, run.algorithm
    reason, instead = _reference_reason(algorithm)
    if reason and models.reference is None:
        otherwise = f", or {instead}" if instead else ""
        yield f"models.reference: is missing; {reason}; add `reference: {{}}`, the policy's weights at the start{otherwise}"
    if "model_weight" in run.rewards.model_fields_set and models.reward is None:
        yield problem(
            "rewards.model_weight", run.rewards.model_weight, "has no effect without models.reward", "leave it out"
        )
    if models.reference is not None and isinstance(algorithm, SftConfig | RewardModelConfig):
        yield _superfluous("models.reference", f"{algorithm.name} compares nothing with a reference")
    if isinstance(algorithm, PpoConfig):
        if models.ppo_value is None:
            yield "models.ppo_value: is missing; ppo trains a critic; add `ppo_value: {lr: 1.0e-5}`, for example"
    else:
        for name in ("value", "ppo_value"):
            if getattr(models, name) is not None:
                yield _superfluous(f"models.{name}", f"only ppo has a critic, and algorithm.name is {algorithm.name}")


def _superfluous(path: str, rule: str) -> str:
    return problem(path, "a section", rule, "leave the section out")


def _units(run: RunConfig) -> Iterator[str]:
    """Samples that are compared with each other must be in one micro-batch, and whole in an episode."""
    unit, what = run.samples_per_unit, "the two answers of a pair" if isinstance(run.algorithm, Paired) else "a group"
    units = {"train_micro_batch_size": unit, "sample_per_episode": max(unit // run.models.policy.n, 1)}
    for option, multiple in units.items():
        size = getattr(run.runtime, option)
        if size % multiple:
            yield problem(
                f"runtime.{option}", size, f"must be a multiple of {multiple}: {run.algorithm.name} keeps {what} together",
                f"write {-(-size // multiple) * multiple}",
            )  # fmt: skip


def _held_out(run: RunConfig) -> Iterator[str]:
    interval, held_out = run.runtime.eval_episode_interval, run.prompts.holdout
    frequency = run.models.policy.sync_frequency
    if frequency and interval % frequency and not run.is_offline:
        yield problem(
            "runtime.eval_episode_interval", interval,
            f"must be a multiple of models.policy.sync_frequency ({frequency}): in between, the rollout has older weights",
            f"write {-(-interval // frequency) * frequency}",
        )  # fmt: skip
    if interval and not held_out:
        yield problem(
            "runtime.eval_episode_interval", interval, "needs prompts that are not trained on",
            "set prompts.holdout to their number, or leave this out",
        )  # fmt: skip
    if held_out and not interval:
        yield problem(
            "prompts.holdout", held_out, "holds back prompts that nobody looks at",
            "set runtime.eval_episode_interval, or leave this out",
        )  # fmt: skip


def _offline(run: RunConfig) -> Iterator[str]:
    """What only a rollout has."""
    name, runtime = run.algorithm.name, run.runtime
    yield from rollout_problems(run)
    if run.models.reward is not None:
        yield _superfluous("models.reward", f"{name} learns from given answers, which nobody scores")
    if run.rewards.functions:
        yield problem("rewards.functions", len(run.rewards.functions), f"{name} learns from given answers", "leave them out")
    if runtime.relay_enabled:
        yield problem(
            "runtime.max_relay_episode", runtime.max_relay_episode, f"{name} rolls nothing out that could be relayed",
            "leave it out; num_training_epoch trains an episode again",
        )  # fmt: skip
    if run.models.policy.n * runtime.num_inference_per_prompt > 1:
        yield problem(
            "runtime.num_inference_per_prompt", runtime.num_inference_per_prompt,
            f"times models.policy.n must be 1: {name} learns from given answers", "leave both out",
        )  # fmt: skip
    if isinstance(run.algorithm, Paired) and run.prompts.source == "reasoning_gym":
        yield problem(
            "prompts.source", "reasoning_gym", f"{name} needs a chosen and a rejected answer to each prompt, and it has one",
            "write jsonl, or app",
        )  # fmt: skip
