"""Relay: keeps the history within its limits, and has the relay function choose what an episode trains.

close -> trim -> relay_sample_fn(buffers) -> select
"""

import asyncio
import logging
import threading
import traceback
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from baton.config import RunConfig
from baton.engine import Engine, RelaySampleFunction, import_function
from baton.errors import BatonError, ConfigError, DeadlineError, RunFailedError
from baton.relay.builtins import BUILTINS, OF_WHOLE_GROUPS, SEEDED, broken_params
from baton.relay.chosen import TrainingSet, training_set
from baton.relay.history import RelayHistory
from baton.relay.samples import EpisodeRelayBuffer
from services.coordinator.connections import Connections
from services.coordinator.report import sample_ages

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Relayed:
    """The training set of one episode."""

    steps: int
    """Optimizer steps of one pass."""
    policy_versions: frozenset[int]
    """Versions that its samples come from."""
    oldest_shown: int | None
    """Oldest published version of the samples that it was chosen from; None: none."""
    metrics: dict[str, float]


class Relay:
    """The relay of one run."""

    def __init__(self, config: RunConfig, engine: Engine, services: Connections, run_id: str) -> None:
        """Raises ConfigError if relay is on and there is not exactly one function. Needs a running event loop."""
        self._config = config
        self._services = services
        self._run_id = run_id
        self._timeout_s = config.deadlines.relay_s
        self._history = RelayHistory(services.relay, run_id, config.deadlines.buffer_s)
        self._function = relay_function(config, engine)
        self.history_from: int | None = None
        """Oldest episode that the function has seen last and sees again in the next episode; None: none."""
        self.spared: list[range] = []
        """Episodes that runs which go on from the newest checkpoint, or from the one that is being written, would show it
        again. They are not evicted."""
        self._shown_from = 0

    def resumed(self, history: range) -> None:
        """The run goes on from a checkpoint, with these earlier episodes."""
        self._shown_from, self.spared = history.start, [history]
        self.history_from = history.start if history else None

    async def choose(self, episode: int, policy_version: int, published: Collection[int]) -> Relayed:
        """Makes the training set of a closed episode, which ages are counted from `policy_version` in. Raises RunFailedError
        for a sample of another version than those `published`, whose weights nobody could tell from others."""
        store, limit = self._config.store, self._config.runtime.relay_limit
        with self._services.at_buffer():
            trimmed = await self._services.relay.trim_history(
                self._run_id, keep_episodes=limit, keep_bytes=store.relay_max_bytes,
                evict_for_bytes=store.relay_when_full == "evict", shown_from=self._shown_from, spared=self.spared,
            )  # fmt: skip
            buffers = await self._history.buffers(trimmed.shown)
        self._shown_from = buffers[0].episode_id
        again = buffers if limit is None else buffers[max(len(buffers) - limit + 1, 0) :]
        self.history_from = again[0].episode_id if again else None
        chosen = await self._in_thread(lambda: training_set(self._called(buffers), buffers, episode))
        versions = frozenset(map(int, np.unique(chosen.policy_versions)))
        if unknown := sorted(versions.difference(published)):
            raise RunFailedError(
                f"the relay function chose samples of policy version {unknown[0]}, which this run knows no digest of; leave "
                'policy_version_max as it is, or write 0, and "" as weights_digest, in a sample that no weights of it made'
            )
        with self._services.at_buffer():
            total, steps = await self._services.relay.select(self._run_id, episode, chosen.references, chosen.made)
        if total == 0:
            log.warning("the relay function chose no samples in episode %d: nothing is trained", episode)
        return Relayed(steps, versions, _oldest_version(buffers), _metrics(chosen, episode, policy_version))

    def _called(self, buffers: list[EpisodeRelayBuffer]) -> Any:
        """What the function returns. Raises RunFailedError with what it raises."""
        try:
            with self._services.at_buffer():  # which has the tensors of the samples that it touches
                return self._function(buffers)
        except BatonError:
            raise
        except BaseException as error:  # it is the user's code: SystemExit too
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise RunFailedError(
                f"the relay function raised {type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
            ) from error

    async def _in_thread(self, work: Callable[[], TrainingSet]) -> TrainingSet:
        """Does the work in a thread of its own, which does not outlive the process. Raises DeadlineError."""
        done: Future[TrainingSet] = Future()
        threading.Thread(target=_do, args=(work, done), name="relay", daemon=True).start()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.wrap_future(done)
        except TimeoutError as error:
            if isinstance(error, DeadlineError):
                raise  # of the samples that it touched
            raise DeadlineError(
                f"the relay function did not return within {self._timeout_s:g} s; have it look at fewer samples (tokens are "
                "loaded when they are touched), or raise deadlines.relay_s"
            ) from error


def _do(work: Callable[[], TrainingSet], done: Future[TrainingSet]) -> None:
    done.set_running_or_notify_cancel()
    try:
        done.set_result(work())
    except BaseException as error:  # told to who waits
        done.set_exception(error)


def relay_function(config: RunConfig, engine: Engine) -> RelaySampleFunction | None:
    """The run's relay function, with its parameters; None if relay is off. Raises ConfigError for two, a wrong name,
    a built-in that divides groups which must stay whole, or parameters that it does not have.

    That there is one was checked before: see `RunConfig.require_startable`.
    """
    name, params = config.runtime.relay_sample_fn, dict(config.runtime.relay_sample_params)
    if not config.runtime.relay_enabled:
        return None
    if name and engine.relay_sample_fn:
        raise ConfigError("runtime.relay_sample_fn: the run file and the app's engine both have one; remove one of the two")
    function = engine.relay_sample_fn
    if name in BUILTINS:
        function = BUILTINS[name]
        if name in SEEDED:
            params.setdefault("seed", config.runtime.seed)
        if problem := broken_params(name, params):
            raise ConfigError(f"runtime.relay_sample_params: {problem}")
        if config.samples_per_unit > 1 and name not in OF_WHOLE_GROUPS:
            raise ConfigError(
                f"runtime.relay_sample_fn: got {name!r}, which chooses samples one by one, but {config.algorithm.name} "
                f"keeps a group together; choose from {', '.join(OF_WHOLE_GROUPS)}, or name your own"
            )
    elif name:
        if ":" not in name:
            raise ConfigError(
                f"runtime.relay_sample_fn: there is no built-in {name!r}; choose from {', '.join(BUILTINS)}, or name your "
                "own as module:function"
            )
        try:
            function = import_function(name)
        except Exception as error:  # the user's module may raise anything
            raise ConfigError(f"runtime.relay_sample_fn: {name} cannot be imported: {error}") from error
    return (lambda buffers: function(buffers, **params)) if params else function


def _oldest_version(buffers: list[EpisodeRelayBuffer]) -> int | None:
    """Of published weights: a sample of version 0 is of none."""
    versions = np.concatenate([buffer.column("policy_version_max") for buffer in buffers])
    return min(map(int, versions[versions > 0]), default=None)


def _metrics(chosen: TrainingSet, episode: int, policy_version: int) -> dict[str, float]:
    """What the report says of the training set."""
    stored_in, total = chosen.references[:, 0], len(chosen.references)
    found = {"relay/samples": float(total)}
    if total:
        found |= sample_ages(chosen.policy_versions, policy_version) | {
            "relay/share_earlier": float(((stored_in != episode) & (stored_in >= 0)).mean()),
            "relay/share_made": float((stored_in < 0).mean()),
        }
    return found
