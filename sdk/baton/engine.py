"""What a run does beyond its run file: prompts, rewards and flow from a Python module of the user's own.

    # arithmetic.py, started with `--app arithmetic:engine`
    from baton.engine import Engine, reward

    def questions():
        return [{"prompt": f"What is {a} + {b}?", "answer": str(a + b)} for a in range(10) for b in range(10)]

    @reward(weight=0.8, timeout_s=2)
    def is_right(prompt, response, metadata):
        return float(response.strip() == metadata["answer"])

    engine = Engine(prompts=questions, rewards=[is_right, "digits_only"])

The module is imported by the coordinator and by its reward workers, never by the services that hold models.
"""

import difflib
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, ClassVar

from baton.config import RunConfig
from baton.config.task import RewardFunctionConfig
from baton.errors import ConfigError
from baton.flow import Flow, FlowContext, Group, PromptItem

__all__ = [
    "DPOEngine", "Engine", "Flow", "FlowContext", "GRPOEngine", "Group", "Model", "OnlineDPOEngine", "PromptItem",
    "RLHFEngine", "load_engine", "reward",
]  # fmt: skip

RewardFunction = Callable[..., float | None]
"""`fn(prompt: str, response: str, metadata: dict, **params)`: a finite number, or None to abstain."""

_OPTIONS = "__baton_reward__"


RelaySampleFunction = Callable[..., list[Mapping[str, Any]]]
"""`fn(episode_relay_buffers: list[EpisodeRelayBuffer], **params)`: from the history, oldest first, to the training set."""

def reward(*, weight: float = 1.0, timeout_s: float = 10.0, **params: Any) -> Callable[[RewardFunction], RewardFunction]:
    """Decorates a reward function with its weight in the sum, its time limit per call and its keyword arguments."""

    def decorate(function: RewardFunction) -> RewardFunction:
        setattr(function, _OPTIONS, {"weight": weight, "timeout_s": timeout_s, "params": params})
        return function

    return decorate


@dataclass
class Engine:
    """What the user's module defines. Everything left out comes from the run file; the flow is generate, then score.

    Which algorithm trains is the run file's choice. The engines below are those of one algorithm, and name its models.

    `prompts`: dicts {"prompt": text or chat messages, **metadata}, or a function that returns them; finite.
    `rewards`: importable functions, or names as in `rewards.functions` of the run file; their weighted values add up.
    `relay_sample_fn`: what chooses training samples from the relayed episodes; see `baton.relay`.
    """

    prompts: Iterable[Mapping[str, Any]] | Callable[[], Iterable[Mapping[str, Any]]] | None = None
    rewards: Sequence[RewardFunction | str] = ()
    flow: Flow | None = None
    relay_sample_fn: RelaySampleFunction | None = None

    ALGORITHMS: ClassVar[tuple[str, ...]] = ()
    """Names of the algorithms that it is for, the usual one first; empty: any."""
    models: ClassVar[tuple["Model", ...]] = ()
    """The roles that it names; the engines of one algorithm do."""

    def require_agrees(self, config: RunConfig) -> None:
        """Raises ConfigError if the run file has another algorithm, lacks a model, or would not use what is here."""
        name = type(self).__name__
        if self.ALGORITHMS and config.algorithm.name not in self.ALGORITHMS:
            raise ConfigError(
                f"algorithm.name: is {config.algorithm.name!r}, but the app's engine is {name}, which is for "
                f"{' or '.join(self.ALGORITHMS)}; write algorithm: {{name: {self.ALGORITHMS[0]}}}"
            )
        unused = next((option for option in ("flow", "rewards") if config.is_offline and getattr(self, option)), None)
        if unused:
            raise ConfigError(
                f"algorithm.name: the app's {name} has {unused}, but {config.algorithm.name} learns from given answers, "
                "which nobody samples or scores; leave that out of the engine, or take another algorithm"
            )
        for model in self.models:
            if model.name not in config.models.roles():
                raise ConfigError(f"models.{model.name}: is missing; the app's {name} has that model; add the section")

    def set_relay_sample_fn(self, function: RelaySampleFunction) -> None:
        """Makes `function(episode_relay_buffers)` choose what relayed episodes train. Any callable; it is never pickled."""
        if not callable(function):
            raise ConfigError(f"relay_sample_fn: got a {type(function).__name__}; give a function of the relay buffers")
        self.relay_sample_fn = function

    def reward_functions(self) -> list[RewardFunctionConfig]:
        """The rewards as the run file would name them. Raises ConfigError for one that a worker could not import."""
        return [_reward_config(function) for function in self.rewards]


@dataclass(frozen=True, slots=True)
class Model:
    """A role of the run file, such as `policy` or `ppo_value`, for the engines that take models."""

    name: str


class _ModelEngine(Engine):
    """An engine of one algorithm, which names its models. `options` are Engine's: prompts, rewards, flow."""

    def _take(self, **models: Model | None) -> None:
        """Keeps the models, by role. Raises ConfigError for one of another role; a reward model may be None."""
        for role, model in models.items():
            if (model is None and role != "reward") or (model is not None and model.name != role):
                raise ConfigError(f"{type(self).__name__}: got {model} as the {role}; give Model({role!r})")
        self.models = tuple(model for model in models.values() if model is not None)


class RLHFEngine(_ModelEngine):
    """PPO: rollout by `policy`, scores by `reference`, `value` and `reward`, training of `ppo_policy` and `ppo_value`."""

    ALGORITHMS = ("ppo",)

    def __init__(
        self, policy: Model, reference: Model, reward: Model | None, value: Model, ppo_policy: Model, ppo_value: Model,
        **options: Any,
    ) -> None:  # fmt: skip
        """Takes the models in this order; without a reward model, reward functions give the rewards."""
        super().__init__(**options)
        self._take(
            policy=policy, reference=reference, reward=reward, value=value, ppo_policy=ppo_policy, ppo_value=ppo_value
        )


class GRPOEngine(_ModelEngine):
    """GRPO and its like: no critic; a group's mean reward takes its place."""

    ALGORITHMS = ("grpo", "gspo")

    def __init__(self, policy: Model, reference: Model, reward: Model | None, ppo_policy: Model, **options: Any) -> None:
        """Takes the models in this order; without a reward model, reward functions give the rewards."""
        super().__init__(**options)
        self._take(policy=policy, reference=reference, reward=reward, ppo_policy=ppo_policy)


class OnlineDPOEngine(GRPOEngine):
    """DPO on the policy's own answers, of which those with larger rewards are preferred."""

    ALGORITHMS = ("online_dpo",)


class DPOEngine(_ModelEngine):
    """DPO on given pairs: prompts are {"prompt", "chosen", "rejected"}, and nothing is rolled out."""

    ALGORITHMS = ("dpo",)

    def __init__(self, reference: Model, ppo_policy: Model, **options: Any) -> None:
        """Takes the models in this order."""
        super().__init__(**options)
        self._take(reference=reference, ppo_policy=ppo_policy)


def _reward_config(function: RewardFunction | str) -> RewardFunctionConfig:
    if isinstance(function, str):
        return _checked(function, {})
    target = f"{function.__module__}:{function.__qualname__}"
    if function.__module__ == "__main__" or "<" in function.__qualname__:
        raise ConfigError(
            f"reward {target} cannot be imported by a worker process: define it at the top level of a module that can be "
            "imported by its name (not in a script, inside another function, or as a lambda)"
        )
    return _checked(target, getattr(function, _OPTIONS, {}))


def _checked(target: str, options: Mapping[str, Any]) -> RewardFunctionConfig:
    try:
        return RewardFunctionConfig(function=target, **options)
    except ValueError as error:
        raise ConfigError(f"reward {target}: {error}") from error


def import_function(target: str) -> Callable[..., Any]:
    """What "module:name" names; raises whatever importing it raises."""
    module, _, name = target.partition(":")
    return reduce(getattr, name.split("."), importlib.import_module(module))


def load_engine(target: str) -> Engine:
    """The Engine that `target`, "module:attribute", names. Raises ConfigError that says which half is wrong."""
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute):
        raise ConfigError(f"app {target!r}: must be module:attribute; write it like arithmetic:engine")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"app {target}: the module imports {error.name!r}, which is not installed") from error
        path = ", ".join(entry or str(Path.cwd()) for entry in sys.path[:3])
        raise ConfigError(
            f"app {target}: there is no module {error.name!r} in {path}, ...; start from the folder that holds it, or put "
            "that folder in PYTHONPATH"
        ) from error
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, vars(module), n=1)
        found = near or [name for name, value in vars(module).items() if isinstance(value, Engine)]
        hint = f"; is it {found[0]!r}?" if found else "; define `engine = Engine(...)` in it"
        raise ConfigError(f"app {target}: {module.__file__} has no {attribute!r}{hint}")
    engine = getattr(module, attribute)
    if not isinstance(engine, Engine):
        raise ConfigError(f"app {target}: is a {type(engine).__name__}, must be a baton.engine.Engine")
    return engine
