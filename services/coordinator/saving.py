"""What makes an episode's work last: checkpoints, the export, and samples that are freed once nothing needs them."""

from pathlib import Path

from baton.config import RunConfig
from services.coordinator.clock import PhaseClock
from services.coordinator.connections import Connections
from services.coordinator.publishing import Publishing
from services.coordinator.state import RunState


class Saving:
    """What one run writes into its folder by the trainer, and frees in the buffer."""

    def __init__(
        self, config: RunConfig, services: Connections, publishing: Publishing, state: RunState, clock: PhaseClock,
        folder: Path,
    ) -> None:  # fmt: skip
        self._services = services
        self._publishing = publishing
        self._state = state
        self._clock = clock
        self._folder = folder
        self._timeout_s = config.deadlines.checkpoint_s
        self._interval = config.runtime.save_episode_interval
        self._free_on_checkpoint = config.store.ack_on == "checkpoint"
        self._saved_step = -1
        self._unconfirmed: list[int] = []

    async def episode_done(self, episode: int) -> None:
        """Its samples are freed once they are trained for good: now, or with the next checkpoint."""
        self._unconfirmed.append(episode)
        if not self._free_on_checkpoint:
            await self._free_episodes()

    async def checkpoint_if_due(self, finished_episodes: int) -> None:
        """Writes one at the interval of the run file."""
        if self._interval and finished_episodes % self._interval == 0:
            await self.checkpoint()

    async def checkpoint(self) -> None:
        """Has the trainer write one, unless the newest is of the present step."""
        if self._saved_step == self._state.global_step:
            return
        services = self._services
        self._clock.begin("checkpoint", services.trainer_name)
        async with self._publishing.trainer:
            with services.at_trainer("deadlines.checkpoint_s"):
                saved = await services.trainer.save_checkpoint(str(self._folder / "checkpoints"), timeout_s=self._timeout_s)
        self._state.checkpoint, self._saved_step = saved.path, self._state.global_step
        if self._free_on_checkpoint:
            with services.at_buffer():
                await services.ledger.confirm_trained(self._state.run_id, self._state.global_step)
            await self._free_episodes()

    async def export(self) -> str:
        """Writes the model as a Hugging Face directory, which it returns."""
        folder = str(self._folder / "export")
        self._clock.begin("export", self._services.trainer_name)
        async with self._publishing.trainer:
            with self._services.at_trainer("deadlines.checkpoint_s"):
                await self._services.trainer.export_model(folder, timeout_s=self._timeout_s)
        return folder

    async def _free_episodes(self) -> None:
        with self._services.at_buffer():
            while self._unconfirmed:
                await self._services.buffer.delete_episode(self._state.run_id, self._unconfirmed[0])
                del self._unconfirmed[0]
