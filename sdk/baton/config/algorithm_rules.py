"""The rules that tie the options of `algorithm` together, and the groups that it needs of the rollout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from baton.config.idle_rules import idle_problems
from baton.config.policy_gradient import GrpoConfig, PolicyGradientConfig
from baton.config.problems import problem

if TYPE_CHECKING:
    from baton.config.algorithm import AlgorithmConfig
    from baton.config.run import RunConfig

GROUPED = ("grpo", "gspo", "online_dpo")
"""Algorithms that compare the responses to one prompt."""


def algorithm_problems(algorithm: AlgorithmConfig) -> Iterator[str]:
    """One line for each rule between options of `algorithm` that is broken."""
    yield from idle_problems("algorithm", algorithm)
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


def group_size_problems(run: RunConfig) -> Iterator[str]:
    """A line if the algorithm compares responses and a prompt has only one."""
    if run.group_size < 2 and run.algorithm.name in GROUPED:
        yield problem(
            "runtime.num_inference_per_prompt",
            run.runtime.num_inference_per_prompt,
            f"times models.policy.n must be at least 2: {run.algorithm.name} compares the responses to one prompt",
            "set num_inference_per_prompt to 8, for example",
        )
