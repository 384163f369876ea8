"""An episode's samples into the buffer: opened, put group by group as they are made, closed."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from baton.config import RunConfig
from baton.flow import Group
from services.coordinator.arrivals import Arrivals
from services.coordinator.clock import PhaseClock
from services.coordinator.connections import Connections
from services.coordinator.error_budget import ErrorBudget
from services.coordinator.flows import wrong_total
from services.coordinator.groups import with_group_statistics
from services.coordinator.issues import Issues
from services.coordinator.report import EpisodeTally


class Intake:
    """What one run puts into the buffer."""

    def __init__(
        self, config: RunConfig, services: Connections, run_id: str, clock: PhaseClock, budget: ErrorBudget
    ) -> None:  # fmt: skip
        self._budget = budget
        self._runtime = config.runtime
        self._unit = config.samples_per_unit
        self._services = services
        self._run_id = run_id
        self._clock = clock
        self.issues = Issues(services, run_id, timeout_s=config.deadlines.generate_s)
        dynamic = config.runtime.stream_data_loader_type == "dynamic" or config.models.policy.n > 1
        self.expected = None if dynamic else config.runtime.sample_per_episode
        """Samples that every episode has; None if only its end tells."""

    async def open(self, episode: int, group_ids: Sequence[str]) -> None:
        """Declares the episode, and that these groups are being made for it."""
        runtime, services = self._runtime, self._services
        with services.at_buffer():
            await services.buffer.open_episode(
                self._run_id, episode, expected_samples=self.expected, relayed=runtime.relays(episode),
                global_batch_size=runtime.global_batch_size, micro_batch_size=runtime.train_micro_batch_size,
                passes=runtime.num_training_epoch, samples_per_unit=self._unit,
            )  # fmt: skip
        await self.issues.begin(episode, group_ids)

    async def put_all(
        self, episode: int, groups: AsyncIterator[Group], tally: EpisodeTally, arrivals: Arrivals | None = None
    ) -> None:  # fmt: skip
        """Puts every group, each of a name of its own, as soon as it comes, then closes the episode; tells `arrivals`.

        Raises InvalidRequestError if they are not as many samples as the episode takes.
        """
        async with aclosing(groups):
            async for group in groups:
                await self._put(episode, group, tally)
                if arrivals is not None:
                    arrivals.stored(tally.samples)
        if tally.samples < (self.expected or 1):
            raise wrong_total(episode, f"only {tally.samples}", self.expected)
        self._clock.enter("put", self._services.buffer_name)
        await self.issues.end()
        with self._services.at_buffer():
            await self._services.buffer.close_episode(self._run_id, episode)
        self._clock.enter("")
        if arrivals is not None:
            arrivals.closed(tally.samples)

    async def _put(self, episode: int, group: Group, tally: EpisodeTally) -> None:
        named = replace(group.samples, group_ids=[group.prompt.group_id] * len(group.samples))  # of a later turn's prompt
        group = replace(group, samples=with_group_statistics(named))
        self._budget.count_group(group)
        tally.add_group(group)
        if self.expected is not None and tally.samples > self.expected:
            raise wrong_total(episode, f"more than {self.expected}", self.expected)
        with self._services.at_buffer():
            await self._services.buffer.put(self._run_id, episode, group.samples, request_id=group.prompt.group_id)
        self.issues.put(group.prompt.group_id)
