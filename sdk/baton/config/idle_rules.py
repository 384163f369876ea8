"""Options that are set, but that others deprive of any effect. Such a run is refused: whoever wrote the option meant
another run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from baton.config.algorithm import DpoConfig
from baton.config.lora import LoraConfig
from baton.config.policy_gradient import GrpoConfig, PolicyGradientConfig
from baton.config.ppo import PpoConfig
from baton.config.problems import problem
from baton.config.trainable import TrainableConfig

if TYPE_CHECKING:
    from baton.config.base import Section
    from baton.config.run import RunConfig


@dataclass(frozen=True, slots=True)
class _Idle:
    """Options of a section that do nothing while `when` holds, told in words, and what to write to give them an effect."""

    section: type[Section]
    options: tuple[str, ...]
    when: Callable[[Any], bool]
    words: str
    fix: str


_IDLE = (
    _Idle(
        GrpoConfig, ("normalization_length",), lambda grpo: grpo.loss_normalization != "constant",
        "with loss_normalization: {loss_normalization}", "write loss_normalization: constant",
    ),
    _Idle(
        GrpoConfig, ("kl_estimator", "kl_weighting"), lambda grpo: not grpo.kl_coef, "without kl_coef", "set kl_coef"
    ),
    _Idle(
        PolicyGradientConfig, ("clip_ratio_low", "clip_ratio_high", "dual_clip"),
        lambda algorithm: algorithm.off_policy.old_policy == "step",
        "with off_policy.old_policy: step, where the clipped ratio is always 1", "write old_policy: rollout",
    ),
    _Idle(
        PpoConfig, ("target", "horizon"), lambda ppo: ppo.fix_kl_coef, "with fix_kl_coef: true", "write fix_kl_coef: false"
    ),
    _Idle(
        PpoConfig, ("fix_kl_coef",), lambda ppo: not (ppo.fix_kl_coef or ppo.init_kl_coef),
        "with init_kl_coef 0, which is adapted by factors", "set init_kl_coef",
    ),
    _Idle(
        PpoConfig, ("divide_by_length",), lambda ppo: not (ppo.init_kl_coef or ppo.lm_coef),
        "with init_kl_coef and lm_coef 0: there is nothing to divide", "set one of them",
    ),
    _Idle(
        PpoConfig, ("reward_bias", "cliprange_reward"), lambda ppo: not ppo.raw_reward_coeff,
        "with raw_reward_coeff 0, which leaves the reward out", "set raw_reward_coeff",
    ),
    _Idle(
        PpoConfig, ("whiten_padding",), lambda ppo: not ppo.whiten_advantages, "with whiten_advantages: false",
        "write whiten_advantages: true",
    ),
    _Idle(
        PpoConfig, ("clipped_value_only",), lambda ppo: ppo.cliprange_value is None,
        "with cliprange_value: null, which clips no value", "set cliprange_value",
    ),
    _Idle(DpoConfig, ("label_smoothing",), lambda dpo: dpo.loss == "ipo", "with loss: ipo", "write loss: sigmoid"),
    _Idle(
        TrainableConfig, ("min_lr", "lr_decay_iters"), lambda trained: trained.lr_decay_style == "constant",
        "with lr_decay_style: constant", "write lr_decay_style: cosine, or linear",
    ),
    _Idle(
        LoraConfig, tuple(name for name in LoraConfig.model_fields if name != "enable_lora"),
        lambda lora: "enable_lora" not in lora.model_fields_set, "without enable_lora: all weights are trained",
        "write enable_lora: true",
    ),
)  # fmt: skip


def idle_problems(path: str, section: Section) -> Iterator[str]:
    """One line for each option of `section`, which is at `path`, that is set and has no effect beside the others."""
    for idle in _IDLE:
        if not isinstance(section, idle.section) or not idle.when(section):
            continue
        for name in idle.options:
            if not _is_set(section, name):
                continue
            words = idle.words.format_map(dict(section))
            fix = f"leave it out, or {idle.fix}"
            yield problem(f"{path}.{name}", getattr(section, name), f"has no effect {words}", fix)


_OF_GIVEN_ANSWERS = (
    "model", "revision", "tokenizer", "tokenizer_revision", "seq_length", "model_config_file", "trainable", "n", "load",
    "lora",
)  # fmt: skip
"""Options of models.policy that a run without a rollout has a use for, or that another rule is about."""


def rollout_problems(run: RunConfig) -> Iterator[str]:
    """One line for each option that only a rollout has a use for, and that a run on given answers sets."""
    sections = {
        "models.policy": (run.models.policy, set(type(run.models.policy).model_fields) - {*_OF_GIVEN_ANSWERS}),
        "runtime": (run.runtime, {"generation_batch_size", "coalesced_buffer_mb"}),
        "rewards": (run.rewards, {"max_error_rate", "workers"}),
        "services": (run.services, {"rollout_addresses", "rollout_port", "openai_port"}),
    }
    rule = f"has no effect: {run.algorithm.name} learns from given answers, and nothing is rolled out"
    inert = run.inert_options()
    for path, (section, options) in sections.items():
        for name in type(section).model_fields:
            if name in options and _is_set(section, name) and f"{path}.{name}" not in inert:
                yield problem(f"{path}.{name}", getattr(section, name), rule, "leave it out")


def _is_set(section: Section, name: str) -> bool:
    """Whether the run file sets the option; one that is off and is so by default may stand there."""
    value, default = getattr(section, name), type(section).model_fields[name].get_default(call_default_factory=False)
    return name in section.model_fields_set and bool(value or value != default)
