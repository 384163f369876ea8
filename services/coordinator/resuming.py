"""Brings a run back to one of its checkpoints.

    newest checkpoint --> state taken over --> trainer loads --> store rolled back --> metrics cut
                          (another driver of                     (episodes after it,
                           this run fails)                        whole)

The prompts of what is rolled back are rolled out again. No sample is trained twice in the lineage of the weights: steps that
the checkpoint does not hold are no part of it. See docs/adr/0012-resume-rolls-back-to-a-checkpoint.md.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass

from baton.config import RunConfig
from baton.errors import ConfigError, ConflictError
from baton.run_checkpoints import (
    RunCheckpoint,
    checkpoint_to_resume,
    damaged_checkpoints,
    run_checkpoints,
    set_aside_after,
)
from services.coordinator.clock import PhaseClock
from services.coordinator.connections import Connections
from services.coordinator.data_checkpoints import DataCheckpoints
from services.coordinator.position import Position
from services.coordinator.report import RunReport
from services.coordinator.state import RunState, StateStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Resume:
    """The wish to go on from a checkpoint: that of an optimizer step, or the newest (None)."""

    global_step: int | None = None


class Resuming:
    """One run's way back. Every step of it may be repeated, by the next coordinator, if this one dies."""

    def __init__(
        self, config: RunConfig, services: Connections, state: RunState, store: StateStore, clock: PhaseClock,
        report: RunReport,
    ) -> None:  # fmt: skip
        self._num_episode = config.runtime.num_episode
        self._data_checkpoints = DataCheckpoints(config, report.folder)
        self._timeout_s = config.deadlines.checkpoint_s
        self._services = services
        self._state = state
        self._store = store
        self._clock = clock
        self._report = report

    async def take_over(self, wish: Resume) -> tuple[RunCheckpoint, Position]:
        """Chooses the checkpoint and makes this coordinator the run's.

        Raises NotFoundError if there is no such checkpoint, or the store does not know the run; ConflictError if the
        checkpoint is another run's, or if the store has evicted history that it needs; ConfigError if it has more episodes
        than the run shall have.
        """
        checkpoint = checkpoint_to_resume(self._report.folder, wish.global_step)
        for problem in damaged_checkpoints(self._report.folder):
            log.warning("%s", problem)
        position = Position.from_mapping(checkpoint.position)
        if position.run_id != self._state.run_id:
            raise ConflictError(
                f"{checkpoint.path} is a checkpoint of run {position.run_id!r}, not of {self._state.run_id!r}; resume that "
                "one, or move the checkpoint away"
            )
        if position.episode > self._num_episode:
            raise ConfigError(
                f"runtime.num_episode: got {self._num_episode}; must be at least {position.episode}, the episodes that "
                f"{checkpoint.path} has behind it; raise it"
            )
        await self._store.stored_revision()
        await self._require_history(checkpoint, position)
        await self._store.take_over()
        position.restore(self._state)
        self._state.checkpoint = str(checkpoint.path)
        await self._store.save(self._state)
        return checkpoint, position

    async def _require_history(self, checkpoint: RunCheckpoint, position: Position) -> None:
        """Raises ConflictError if the relay function would be shown another history than it was."""
        with self._services.at_buffer():
            stored = {kept.episode_id for kept in await self._services.relay.list_history(self._state.run_id)}
        gone = _evicted(position, stored)
        if not gone:
            return
        known = [(one, Position.from_mapping(one.position)) for one in run_checkpoints(self._report.folder)]
        whole = [str(one.global_step) for one, of in known if not _evicted(of, stored)]
        fix = f"set runtime.load_data_checkpoint_iteration to one of {', '.join(whole)}, or leave it out for the newest"
        lacking = f"episode {gone.start}" if len(gone) == 1 else f"episodes {gone.start} to {gone.stop - 1}"
        raise ConflictError(
            f"{checkpoint.path} would have the relay function see {lacking} again, which the store has evicted: "
            f"it keeps what the newest checkpoint needs; {fix if whole else 'start another run'}"
        )

    async def restore(self, checkpoint: RunCheckpoint, position: Position) -> None:
        """Has trainer, store and metrics go back to it."""
        services, state = self._services, self._state
        self._clock.begin("start", services.trainer_name)
        with services.at_trainer("deadlines.checkpoint_s"):
            step = await services.trainer.load_checkpoint(str(checkpoint.path), timeout_s=self._timeout_s)
        if step != position.global_step:
            raise ConflictError(f"{checkpoint.path} holds optimizer step {step}, but says {position.global_step} of its run")
        set_aside_after(self._report.folder, position.global_step)
        self._data_checkpoints.roll_back(position, str(checkpoint.path))
        self._clock.begin("start", services.buffer_name)
        with services.at_buffer():
            undone = await services.ledger.roll_back(state.run_id, position.episode, position.global_step)
            await services.ledger.confirm_trained(state.run_id, position.global_step)
            for episode in await services.ledger.list_episodes(state.run_id):
                if not episode.ended:
                    await services.buffer.delete_episode(state.run_id, episode.episode_id)
        for phase, seconds in position.seconds.items():
            self._clock.total_s[phase] += seconds
        self._report.roll_back(position.episode, position.global_step)
        log.info(
            "run %s goes on from %s: episode %d, optimizer step %d; %d later steps are rolled back", state.run_id,
            checkpoint.path, position.episode, position.global_step, undone,
        )  # fmt: skip


def _evicted(position: Position, stored: Collection[int]) -> range:
    """The episodes that a run which goes on from there lacks: the oldest, as these are evicted first."""
    history = position.history
    if not history or history.start in stored:
        return range(0)
    return range(history.start, min((episode for episode in stored if episode in history), default=history.stop))
