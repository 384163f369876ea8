"""Which training is for good when samples count as done with a checkpoint only (store.ack_on: checkpoint)."""

from baton.errors import ConflictError
from services.buffer.inspection import Inspection, pairs
from services.buffer.keys import EpisodeKeys, RunKeys
from services.buffer.store import Store


class Checkpoints:
    """Acknowledges trained steps, or has them trained again. State is in the store only."""

    def __init__(self, store: Store, inspection: Inspection) -> None:
        self._store = store
        self._inspection = inspection

    async def confirm(self, run: RunKeys, global_step: int) -> int:
        """A checkpoint holds the optimizer steps up to this one; returns how many steps it acknowledged."""
        changed = 0
        for keys in await self._inspection.episode_keys(run):
            changed += (await self._store.run("confirm", [keys.steps], global_step))[0]
        return changed

    async def rewind(self, run: RunKeys, global_step: int) -> int:
        """The trainer is back at this optimizer step; returns how many steps are to be trained again.

        Raises ConflictError if a later one is acknowledged already: its samples may be gone.
        """
        await self._check_ended(run, global_step)
        undone = 0
        for keys in await self._inspection.episode_keys(run):
            match await self._store.run(
                "rewind", [keys.episode, keys.steps, run.global_steps], global_step, keys.episode_id
            ):
                case [b"rewound", steps]:
                    undone += steps
                case [b"acked", step]:
                    raise ConflictError(
                        f"{keys}: {step.decode()}, is acknowledged, so the trainer cannot go back to optimizer step "
                        f"{global_step}; load a later checkpoint, or set store.ack_on: checkpoint for the next run"
                    )
        return undone

    async def _check_ended(self, run: RunKeys, global_step: int) -> None:
        """Raises ConflictError if an episode ended with a step that was trained later: the ledger forgot its steps."""
        later = await self._store.call("ZRANGEBYSCORE", run.global_steps, f"({global_step}", "+inf", "WITHSCORES")
        ended = {int(episode_id) for episode_id in await self._store.call("HKEYS", run.ended)}
        for name, number in pairs(later):
            episode_id, step = name.decode().split()
            if int(episode_id) in ended:
                raise ConflictError(
                    f"{EpisodeKeys(run.run_id, int(episode_id))} ended, and its {step} was trained by optimizer step "
                    f"{int(float(number))}, so the trainer cannot go back to optimizer step {global_step}; load a later "
                    "checkpoint"
                )
