"""The rules that tie the options of `algorithm` together, and the groups that it needs of the rollout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from baton.config.algorithm import DpoConfig, GrpoConfig
from baton.config.policy_gradient import PolicyGradientConfig
from baton.config.ppo import PpoConfig
from baton.config.problems import problem

if TYPE_CHECKING:
    from baton.config.run import RunConfig

GROUPED = ("grpo", "gspo", "online_dpo")
"""Algorithms that compare the responses to one prompt."""


def algorithm_problems(run: RunConfig) -> Iterator[str]:
    """One line for each rule between options of `algorithm` that is broken."""
    algorithm = run.algorithm
    if isinstance(algorithm, PolicyGradientConfig):
        low, high = algorithm.off_policy.reject_below, algorithm.off_policy.reject_above
        if low is not None and high is not None and low >= high:
            yield problem(
                "algorithm.off_policy.reject_below", low, f"must be less than reject_above ({high})", "lower it"
            )
    if isinstance(algorithm, GrpoConfig):
        length, kind = algorithm.normalization_length, algorithm.loss_normalization
        if kind == "constant" and length is None:
            yield "algorithm.normalization_length: is missing; loss_normalization: constant needs it; add the token limit"
        if kind != "constant" and length is not None:
            yield problem(
                "algorithm.normalization_length", length, f"has no effect with loss_normalization: {kind}",
                "leave it out, or write loss_normalization: constant",
            )  # fmt: skip
        if algorithm.kl_weighting and not algorithm.kl_coef:
            yield problem("algorithm.kl_weighting", True, "has no effect without kl_coef", "leave it out, or set kl_coef")
    if isinstance(algorithm, PpoConfig) and not (algorithm.fix_kl_coef or algorithm.init_kl_coef):
        yield problem(
            "algorithm.fix_kl_coef", False, "has no effect with init_kl_coef 0, which is adapted by factors",
            "leave it out, or set init_kl_coef",
        )  # fmt: skip
    if isinstance(algorithm, DpoConfig) and algorithm.loss == "ipo" and algorithm.label_smoothing:
        yield problem(
            "algorithm.label_smoothing", algorithm.label_smoothing, "has no effect with loss: ipo",
            "leave it out, or write loss: sigmoid",
        )  # fmt: skip


def group_size_problems(run: RunConfig) -> Iterator[str]:
    """A line if the algorithm compares responses and a prompt has only one."""
    if run.group_size < 2 and run.algorithm.name in GROUPED:
        yield problem(
            "runtime.num_inference_per_prompt",
            run.runtime.num_inference_per_prompt,
            f"times models.policy.n must be at least 2: {run.algorithm.name} compares the responses to one prompt",
            "set num_inference_per_prompt to 8, for example",
        )
