"""What makes an episode's work last: checkpoints, the export, and samples that are freed once nothing needs them.

A checkpoint at the run file's interval is written behind the run, which waits for the trainer's copy only. Until it is whole
nothing counts on it: neither the run's state nor the samples that it holds.
"""

import asyncio
from pathlib import Path

from baton.config import RunConfig
from baton.run_checkpoints import FOLDER
from services.coordinator.clock import PhaseClock
from services.coordinator.connections import Connections
from services.coordinator.data_checkpoints import DataCheckpoints
from services.coordinator.position import Position
from services.coordinator.publishing import Publishing
from services.coordinator.relay import Relay
from services.coordinator.report import EpisodeReport
from services.coordinator.state import RunState


class Saving:
    """What one run writes into its folder by the trainer, and frees in the buffer."""

    def __init__(
        self, config: RunConfig, services: Connections, publishing: Publishing, state: RunState, clock: PhaseClock,
        folder: Path, relay: Relay,
    ) -> None:  # fmt: skip
        self.between_episodes = True
        """Whether the trainer's weights are those of whole episodes, all of which are done."""
        self._services = services
        self._publishing = publishing
        self._state = state
        self._clock = clock
        self._folder = folder
        self._relay = relay
        self._data_checkpoints = DataCheckpoints(config, folder)
        self._timeout_s = config.deadlines.checkpoint_s
        self._interval = config.runtime.save_episode_interval
        self._free_on_checkpoint = config.store.ack_on == "checkpoint"
        self._keep = config.runtime.keep_checkpoints
        self._saved = (-1, -1)
        self._unconfirmed: list[int] = []
        self._writing: asyncio.Task[None] | None = None

    def resumed(self, position: Position) -> None:
        """The trainer is at this position, of which there is a checkpoint."""
        self._saved = position.global_step, position.episode
        self._relay.resumed(position.history)

    async def episode_done(self, episode: int) -> None:
        """Its samples are freed once they are trained for good: now, or with the next checkpoint. Raises what a checkpoint
        failed with that was being written meanwhile."""
        self._unconfirmed.append(episode)
        if not self._free_on_checkpoint:
            await self._free_episodes(len(self._unconfirmed))
        if self._writing and self._writing.done():
            await self.settle()

    async def checkpoint_if_due(self, finished_episodes: int, report: EpisodeReport) -> None:
        """Begins to write one at the interval of the run file; `report` tells of the last episode what is known so far."""
        if self._interval and finished_episodes % self._interval == 0:
            await self._begin(report)

    async def checkpoint(self) -> None:
        """Has the trainer write one, unless the newest is of the present step and episode; it is whole when this returns."""
        await self._begin(None)
        await self.settle()

    async def settle(self) -> None:
        """Waits for the checkpoint that is being written, if one is. Raises what it failed with."""
        if self._writing:
            self._clock.begin("checkpoint", self._services.trainer_name)
            writing, self._writing = self._writing, None
            await writing

    async def close(self) -> None:
        """Waits for nothing any more."""
        if self._writing:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)

    async def _begin(self, report: EpisodeReport | None) -> None:
        services, state = self._services, self._state
        step, episode = self._saved
        if step == state.global_step and (episode == state.episode or not self.between_episodes):
            return  # one in the midst of an episode must not take the name of one that a run can go on from
        await self.settle()
        self._clock.begin("checkpoint", services.trainer_name)
        async with self._publishing.trainer:
            position = self._position(report)
            keep = self._keep if position.between_episodes else None
            with services.at_trainer("deadlines.checkpoint_s"):
                saved = await services.trainer.save_checkpoint(
                    str(self._folder / FOLDER), run=position.to_json(), background=True, keep=keep,
                    timeout_s=self._timeout_s,
                )  # fmt: skip
        self._saved = position.global_step, position.episode
        if position.between_episodes:
            self._relay.spared = [*self._relay.spared, position.history]  # it may become whole at any moment
        self._writing = asyncio.create_task(self._when_whole(saved.path, position, len(self._unconfirmed)))

    async def _when_whole(self, path: str, position: Position, episodes: int) -> None:
        """What may be done once the checkpoint is: it holds all up to the position, and so many of the episodes whose
        samples are still there."""
        services = self._services
        with services.at_trainer("deadlines.checkpoint_s"):
            await services.trainer.await_checkpoint(path, timeout_s=self._timeout_s)
        self._state.checkpoint = path
        self._data_checkpoints.write(position, path)
        if position.between_episodes:
            self._relay.spared = [position.history]
        if self._free_on_checkpoint:
            with services.at_buffer():
                await services.ledger.confirm_trained(self._state.run_id, position.global_step)
            await self._free_episodes(episodes)

    def _position(self, report: EpisodeReport | None) -> Position:
        state = self._state
        return Position(
            run_id=state.run_id, between_episodes=self.between_episodes, episode=state.episode,
            global_step=state.global_step, prompts_consumed=state.prompts_consumed, policy_version=state.policy_version,
            weights_digest=state.weights_digest, published_step=self._publishing.published_step, digests=state.digests,
            elapsed_s=state.elapsed_s, seconds=dict(self._clock.total_s), report=report,
            history_from=self._relay.history_from, history_version=state.history_version,
        )  # fmt: skip

    async def export(self) -> str:
        """Writes the model as a Hugging Face directory, which it returns."""
        folder = str(self._folder / "export")
        self._clock.begin("export", self._services.trainer_name)
        async with self._publishing.trainer:
            with self._services.at_trainer("deadlines.checkpoint_s"):
                await self._services.trainer.export_model(folder, timeout_s=self._timeout_s)
        return folder

    async def _free_episodes(self, count: int) -> None:
        """The oldest so many of those that are done."""
        with self._services.at_buffer():
            for _ in range(count):
                await self._services.buffer.delete_episode(self._state.run_id, self._unconfirmed[0])
                del self._unconfirmed[0]
