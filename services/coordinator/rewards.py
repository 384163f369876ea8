"""Reward functions, called in worker processes under a time limit: a hanging or crashing one costs a worker, not the run.

A call ends as VALUE, ABSTAIN (it returned None), ERROR (it raised, or returned no finite number) or TIMEOUT. The weighted
values add up to a sample's reward; a sample has one only if every function gave a value.
"""

import asyncio
import contextlib
import json
import math
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from pebble import ProcessExpired, ProcessPool

from baton.config import RunConfig
from baton.config.task import RewardFunctionConfig, RewardsConfig
from baton.engine import Engine
from baton.errors import ConfigError, DeadlineError, ServiceFaultError
from baton.flow import Group
from baton.samples import RewardStatus
from services.coordinator import reward_worker
from services.coordinator.builtin_rewards import BUILTINS
from services.coordinator.error_budget import ErrorBudget
from services.coordinator.reward_worker import Outcome

WORST_FIRST = (RewardStatus.ERROR, RewardStatus.TIMEOUT, RewardStatus.ABSTAIN)
"""A sample that several functions left without a value has the first of these that occurred."""

JOIN_S = 5.0
"""How long ending the workers may take before they are left to end with this process."""


class RewardPool:
    """The run's reward workers. Call `start` first and `close` last; `score` may run many times at once."""

    def __init__(
        self, functions: Sequence[RewardFunctionConfig], config: RewardsConfig, budget: ErrorBudget, *, deadline_s: float
    ) -> None:
        """`deadline_s`: how long the workers may be silent while calls wait."""
        self.functions = functions
        self.names = _names(functions)
        self._workers = config.workers
        self._deadline_s = deadline_s
        self._pool: ProcessPool | None = None
        self._last_answer = 0.0
        self.budget = budget

    async def start(self, timeout_s: float) -> None:
        """Starts the workers and has one import every function. Raises ConfigError for one that cannot be imported."""
        if not self.functions:
            return
        self._pool = ProcessPool(
            max_workers=self._workers,
            initializer=reward_worker.start,
            initargs=([function.function for function in self.functions],),
            context=multiprocessing.get_context("spawn"),
        )
        loading = asyncio.wrap_future(self._pool.schedule(reward_worker.load_errors))
        try:
            errors = await asyncio.wait_for(loading, timeout_s)
        except TimeoutError as error:
            raise DeadlineError(
                f"the reward functions {', '.join(self.names)} were not imported within {timeout_s:g} s; import less at the "
                "top of their modules, or raise deadlines.startup_s"
            ) from error
        if errors:
            listing = "\n".join(f"reward {target} cannot be imported: {cause}" for target, cause in errors.items())
            raise ConfigError(f"{listing}\ncorrect rewards.functions, or start from the folder that holds the module")

    async def score(self, group: Group) -> Group:
        """The group with a reward and a status for each response. Raises RunFailedError when too many calls failed."""
        if not self.functions:
            raise ConfigError("rewards.functions: is empty, but the flow asks for scores; add a function")
        metadata = json.dumps(group.prompt.metadata)
        outcomes = await asyncio.gather(
            *(self._call(i, group.prompt.text, text, metadata) for i in range(len(self.functions)) for text in group.texts)
        )
        size = len(group.texts)
        by_function = [outcomes[i * size : (i + 1) * size] for i in range(len(self.functions))]
        statuses = [_worst([row[g][0] for row in by_function]) for g in range(size)]
        values_FG = np.asarray([[value for _, value, _ in row] for row in by_function], np.float64)
        weights_F = np.asarray([function.weight for function in self.functions])
        scored = group.with_rewards(list(weights_F @ values_FG), statuses)
        return replace(scored, scores=dict(zip(self.names, values_FG, strict=True)))

    async def close(self) -> None:
        """Ends the workers, whatever they are doing."""
        if self._pool is not None:
            self._pool.stop()
            await asyncio.to_thread(_join, self._pool)

    async def _call(self, index: int, prompt: str, response: str, metadata: str) -> Outcome:
        function = self.functions[index]
        arguments = (function.function, prompt, response, metadata, function.params)
        try:
            future = asyncio.wrap_future(self._pool.schedule(reward_worker.call, arguments, timeout=function.timeout_s))
            await self._progress(future)
            outcome = _outcome(future, function.timeout_s)
        except RuntimeError as error:  # BrokenProcessPool too
            raise ServiceFaultError(
                f"the reward workers ended by themselves ({error}); was one killed for its memory? Start the run again"
            ) from error
        self.budget.count(_failure(self.names[index], outcome))
        return outcome

    async def _progress(self, future: asyncio.Future[Outcome]) -> None:
        """Waits as long as any call is answered now and then; the time limit of the call itself is the pool's."""
        asked = time.monotonic()
        try:
            while not (await asyncio.wait([future], timeout=self._deadline_s))[0]:
                if time.monotonic() - max(asked, self._last_answer) >= self._deadline_s:
                    raise DeadlineError(
                        f"the reward workers answered no call for {self._deadline_s:g} s; give rewards.functions a shorter "
                        "timeout_s, or raise deadlines.reward_s"
                    )
        finally:
            future.cancel()  # does nothing to a finished one
        self._last_answer = time.monotonic()


def _outcome(future: asyncio.Future[Outcome], timeout_s: float) -> Outcome:
    try:
        return future.result()
    except TimeoutError:
        return RewardStatus.TIMEOUT, math.nan, f"did not return within its timeout_s of {timeout_s:g} s"
    except ProcessExpired as error:
        return RewardStatus.ERROR, math.nan, f"ended its worker process (exit code {error.exitcode})"


def _failure(name: str, outcome: Outcome) -> str:
    """Why a call gave no value; empty if it gave one, or abstained."""
    status, _, cause = outcome
    if status not in (RewardStatus.ERROR, RewardStatus.TIMEOUT):
        return ""
    return f"reward function {name} {'timed out' if status == RewardStatus.TIMEOUT else 'failed'}: {cause}"


def reward_functions(config: RunConfig, engine: Engine) -> list[RewardFunctionConfig]:
    """The run's reward functions, each as module:name. Raises ConfigError if run file and engine do not agree on them."""
    functions = engine.reward_functions()
    if functions and config.rewards.functions:
        raise ConfigError("rewards.functions: the run file and the app's engine both have rewards; remove one of the two")
    functions = functions or config.rewards.functions
    if not (functions or engine.flow or config.models.reward or config.is_offline):
        raise ConfigError(
            "rewards.functions: is empty; add one, as {function: verifier}, or models.reward, or an app with rewards or a "
            "flow"
        )
    if config.runtime.eval_episode_interval and not (functions or config.models.reward or config.is_offline):
        raise ConfigError(
            f"runtime.eval_episode_interval: got {config.runtime.eval_episode_interval}; an evaluation takes the run's "
            "rewards, and the engine's flow alone gives them; add a reward function, or leave this out"
        )
    return [_resolved(function) for function in functions]


def _resolved(function: RewardFunctionConfig) -> RewardFunctionConfig:
    if ":" in function.function:
        return function
    if function.function not in BUILTINS:
        raise ConfigError(
            f"rewards.functions: there is no built-in {function.function!r}; choose {' or '.join(BUILTINS)}, or name your "
            "own as module:function"
        )
    return function.model_copy(update={"function": BUILTINS[function.function]})


def _names(functions: Sequence[RewardFunctionConfig]) -> list[str]:
    """Short names for reports; a function that is used twice gets a number."""
    short = [function.function.rpartition(":")[2] for function in functions]
    return [name if short.count(name) == 1 else f"{name}_{short[:i].count(name) + 1}" for i, name in enumerate(short)]


def _worst(statuses: Sequence[int]) -> RewardStatus:
    return next((status for status in WORST_FIRST if status in statuses), RewardStatus.VALUE)


def _join(pool: ProcessPool) -> None:
    with contextlib.suppress(TimeoutError):
        pool.join(JOIN_S)
