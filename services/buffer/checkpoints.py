"""Which training is for good when samples count as done with a checkpoint only (store.ack_on: checkpoint)."""

from baton.errors import ConflictError
from services.buffer.inspection import Inspection
from services.buffer.keys import RunKeys
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
