"""Optimizer steps: asks the trainer for one after the other, holds it to their numbers, and reports each."""

import logging
from collections.abc import Collection

from baton.config import RunConfig
from baton.errors import ServiceFaultError
from services.coordinator.arrivals import Arrivals
from services.coordinator.clock import PhaseClock
from services.coordinator.connections import Connections
from services.coordinator.publishing import Publishing
from services.coordinator.report import EpisodeTally, RunReport, brief
from services.coordinator.state import RunState

log = logging.getLogger(__name__)


class Steps:
    """The steps of one run."""

    def __init__(
        self, config: RunConfig, services: Connections, publishing: Publishing, state: RunState, clock: PhaseClock,
        report: RunReport,
    ) -> None:  # fmt: skip
        self._runtime = config.runtime
        self._timeout_s = config.deadlines.train_step_s
        self._services = services
        self._publishing = publishing
        self._state = state
        self._clock = clock
        self._report = report

    async def as_they_arrive(self, episode: int, arrivals: Arrivals, first_version: int, tally: EpisodeTally) -> int:
        """Takes each step of the first pass as soon as its samples are stored. Returns the number of steps in a pass."""
        steps = 0
        async for step in arrivals.steps(self._runtime.global_batch_size):
            await self._take(episode, 0, step, self.versions_since(first_version), tally)
            steps = step + 1
        return steps

    async def passes(self, first: int, episode: int, steps: int, versions: Collection[int], tally: EpisodeTally) -> None:
        """Takes all steps of the passes from `first` on, on samples of these policy versions."""
        for pass_index in range(first, self._runtime.num_training_epoch):
            for step_index in range(steps):
                await self._take(episode, pass_index, step_index, versions, tally)

    def versions_since(self, first: int) -> range:
        """Of one episode's samples: one version, unless that was lost with all replicas and the next one took its place."""
        return range(first, self._state.policy_version + 1)

    async def _take(
        self, episode: int, pass_index: int, step_index: int, versions: Collection[int], tally: EpisodeTally
    ) -> None:  # fmt: skip
        self._clock.check_stop()
        services, state = self._services, self._state
        async with self._publishing.trainer:
            with self._clock.over("train", services.trainer_name), services.at_trainer("deadlines.train_step_s"):
                step = await services.trainer.train_step(
                    state.run_id, episode, pass_index=pass_index, step_index=step_index,
                    buffer_address=services.buffer.address,
                    expected_digests={v: state.digests[v] for v in versions if v in state.digests},
                    timeout_s=self._timeout_s,
                )  # fmt: skip
            self._check(step.global_step)
        tally.add_step(step.metrics, step.computed_tokens)
        self._report.add_step(step.global_step, (episode, pass_index, step_index), step.metrics)
        if step.global_step % self._runtime.log_interval == 0:
            log.info("step %d: %s", step.global_step, brief(step.metrics))
        self._clock.check_stop()  # the samples of the next step may be long in coming

    def _check(self, global_step: int) -> None:
        """Raises ServiceFaultError if the trainer is not where this run left it: its weights are other ones then."""
        expected = self._state.global_step + 1
        if global_step != expected:
            raise ServiceFaultError(
                f"{self._services.trainer_name} took optimizer step {global_step}, but step {expected} was due; it was "
                "restarted, or somebody else trains with it; resume the run with a trainer of its own"
            )
        self._state.global_step = global_step
