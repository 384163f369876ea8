"""The rules that tie the options of `algorithm` together, and what it needs of the rollout: groups, and a distribution that
the trainer can compute too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from baton.config.idle_rules import idle_problems
from baton.config.policy_gradient import GrpoConfig, PolicyGradientConfig
from baton.config.problems import problem

if TYPE_CHECKING:
    from baton.config.algorithm import AlgorithmConfig
    from baton.config.policy import PolicyConfig
    from baton.config.run import RunConfig

GROUPED = ("grpo", "gspo", "online_dpo")
"""Algorithms that compare the responses to one prompt."""
_WHOLE = {
    "top_p": (1.0,), "top_k": (-1, 0), "presence_penalty": (0.0,), "frequency_penalty": (0.0,), "repetition_penalty": (1.0,),
}  # fmt: skip
"""Option of the policy's sampling -> the values that leave its distribution whole."""


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


def undescribed(policy: PolicyConfig, overrides: Mapping[str, object]) -> str | None:
    """The option, of the run file or of a request that overrides it, by which samples would not say of which distribution
    they are: one that cuts it, at a temperature at which they do not carry what it was cut from; or a beam search."""
    options = {name: getattr(policy, name) for name in ("use_beam_search", "temperature", *_WHOLE)}
    options |= {name: value for name, value in overrides.items() if name in options and value is not None}
    if options["use_beam_search"]:
        return "use_beam_search"
    if options["temperature"] in (0, 1):  # at 1 that is the raw model's, which they carry
        return None
    return next((name for name, whole in _WHOLE.items() if options[name] not in whole), None)


def distribution_problems(run: RunConfig) -> Iterator[str]:
    """A line for an option by which samples would not say of which distribution they are; beam search has another rule."""
    policy = run.models.policy
    if option := undescribed(policy, {"use_beam_search": False}):
        yield problem(
            f"models.policy.{option}", getattr(policy, option),
            f"needs models.policy.temperature 1 ({policy.temperature} is set): at others the samples do not say yet how "
            "likely a token was before the distribution was cut",
            "set temperature to 1, or leave it out",
        )  # fmt: skip
