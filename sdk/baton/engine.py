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
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from baton.clients.rollout import SamplingParams
from baton.config.task import RewardFunctionConfig
from baton.errors import ConfigError
from baton.samples import RewardStatus, Samples

RewardFunction = Callable[..., float | None]
"""`fn(prompt: str, response: str, metadata: dict, **params)`: a finite number, or None to abstain."""

_OPTIONS = "__baton_reward__"


@dataclass(frozen=True, slots=True)
class PromptItem:
    """One prompt of an episode, ready to be sent.

    `messages` are the chat turns that the model sees, unless there are `token_ids`, which it sees as they are; `text` is the
    prompt as the source gave it (of a chat, the last turn), which reward functions get; `metadata` is the rest of the
    source's record and travels with every sample.
    """

    group_id: str
    messages: list[dict[str, str]]
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
    token_ids: Sequence[int] | None = None
    continues: Sequence[int] = ()
    """Tokens that `token_ids` must begin with, or the replica refuses them: see `after`."""

    def after(self, samples: Samples, row: int, further: Sequence[int] = ()) -> Self:
        """The prompt that goes on where response `row` of `samples` ended, token by token, with `further` ones: the next
        turn of a conversation, or none for the rest of a response that was cut off, which `baton.partial.joined` puts
        together. It is named by that response's id."""
        tokens = [*samples.prompt_ids.rows()[row].tolist(), *samples.response_ids.rows()[row].tolist()]
        return replace(self, group_id=samples.sample_ids[row], token_ids=[*tokens, *further], continues=tokens)


@dataclass(frozen=True, slots=True)
class Group:
    """All G responses to one prompt: `samples` [G], `texts` [G], and `scores` [G] by reward function (NaN: no value)."""

    prompt: PromptItem
    samples: Samples
    texts: list[str]
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)

    def with_rewards(self, values: Sequence[float | None], statuses: Sequence[RewardStatus] | None = None) -> Self:
        """The group with one reward per response; None abstains. `statuses` [G] tells other reasons for a missing value.

        Raises ValueError if there is not one value for each response.
        """
        if len(values) != len(self.samples):
            raise ValueError(f"group {self.prompt.group_id} has {len(self.samples)} responses but got {len(values)} rewards")
        rewards = np.asarray([np.nan if value is None else value for value in values], np.float32)
        if statuses is None:
            statuses = [RewardStatus.VALUE if finite else RewardStatus.ABSTAIN for finite in np.isfinite(rewards)]
        scored = replace(self.samples, rewards=rewards, reward_status=np.asarray(statuses, np.uint8))
        return replace(self, samples=scored)


class FlowContext(Protocol):
    """What a flow can ask for during one episode."""

    episode_id: int
    """0-based."""

    def generate(self, prompts: Sequence[PromptItem], sampling: SamplingParams | None = None) -> AsyncIterator[Group]:
        """Yields each prompt's responses when they are complete. `sampling` overrides the run file's options.

        Raises InvalidRequestError for an override by which the trainer would see another distribution than was sampled.
        """
        ...

    def score(self, groups: AsyncIterator[Group]) -> AsyncIterator[Group]:
        """Yields the groups with their rewards, each as soon as its last reward function has answered."""
        ...


RelaySampleFunction = Callable[..., list[Mapping[str, Any]]]
"""`fn(episode_relay_buffers: list[EpisodeRelayBuffer], **params)`: from the history, oldest first, to the training set."""

Flow = Callable[[FlowContext, Sequence[PromptItem]], AsyncIterator[Group]]
"""An async generator function: gets one episode's prompts and yields scored groups, in the order to be trained."""


def reward(*, weight: float = 1.0, timeout_s: float = 10.0, **params: Any) -> Callable[[RewardFunction], RewardFunction]:
    """Decorates a reward function with its weight in the sum, its time limit per call and its keyword arguments."""

    def decorate(function: RewardFunction) -> RewardFunction:
        setattr(function, _OPTIONS, {"weight": weight, "timeout_s": timeout_s, "params": params})
        return function

    return decorate


@dataclass(slots=True)
class Engine:
    """What the user's module defines. Everything left out comes from the run file, and the flow is generate, then score.

    It trains by GRPO.

    `prompts`: dicts {"prompt": text or chat messages, **metadata}, or a function that returns them; finite.
    `rewards`: importable functions, or names as in `rewards.functions` of the run file; their weighted values add up.
    `relay_sample_fn`: what chooses training samples from the relayed episodes; see `baton.relay`.
    """

    prompts: Iterable[Mapping[str, Any]] | Callable[[], Iterable[Mapping[str, Any]]] | None = None
    rewards: Sequence[RewardFunction | str] = ()
    flow: Flow | None = None
    relay_sample_fn: RelaySampleFunction | None = None

    def require_startable(self) -> None:
        """Raises ConfigError for an engine whose algorithm no service carries out yet."""

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


class RLHFEngine(Engine):
    """PPO: rollout by `policy`, scores by `reference`, `value` and `reward`, training of `ppo_policy` and `ppo_value`."""

    def __init__(
        self, policy: Model, reference: Model, reward: Model, value: Model, ppo_policy: Model, ppo_value: Model
    ) -> None:  # fmt: skip
        """Takes the models in this order."""
        super().__init__()
        self.models = (policy, reference, reward, value, ppo_policy, ppo_value)

    def require_startable(self) -> None:
        """PPO is not carried out yet, and training by GRPO instead would be another run."""
        raise ConfigError("engine: RLHFEngine is PPO, which no service carries out yet; use Engine, which trains by GRPO")


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
