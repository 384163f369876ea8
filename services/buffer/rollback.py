"""Takes a run back to a checkpoint that was written between two episodes: what came after it is forgotten as a whole. Or
removes the run.

Its prompts are rolled out again, from the weights of the checkpoint; see docs/adr/0012-resume-rolls-back-to-a-checkpoint.md.
"""

from baton.errors import ConflictError
from services.buffer.chunks import RECORD, Layout
from services.buffer.keys import EpisodeKeys, RunKeys, starting_with
from services.buffer.store import Store
from services.buffer.training_set import TrainingSets


class RollBack:
    """State is in the store only. What a death interrupts, the next call finishes."""

    def __init__(self, store: Store, sets: TrainingSets) -> None:
        self._store = store
        self._sets = sets

    async def before(self, run: RunKeys, episode_id: int, global_step: int) -> int:
        """Forgets the episodes from `episode_id` on, of which optimizer steps after `global_step` trained what was trained.
        Returns how many steps these were.

        Raises ConflictError, and forgets nothing, if the two do not fit together.
        """
        answer = await self._store.run(
            "roll_back_run", [run.global_steps, run.ended, run.relaying, run.dead, run.usage], episode_id, global_step
        )
        if answer[0] != b"gone":
            name, number = answer[1].decode(), int(float(answer[2]))
            raise ConflictError(
                f"{run} cannot go back to optimizer step {global_step}, before episode {episode_id}: optimizer step "
                f"{number} trained episode {name}; the checkpoint is not one of this run between two episodes"
            )
        await self._forget_from(run, episode_id)
        return answer[1]

    async def whole(self, run: RunKeys) -> int:
        """Forgets the run, with all that it has beside its episodes. Returns how many of these were there."""
        episodes = await self._forget_from(run, 0)
        if rest := [key async for key in self._store.scan(starting_with(f"{run.prefix}:"))]:
            await self._store.call("UNLINK", *rest)
        return episodes

    async def _forget_from(self, run: RunKeys, episode_id: int) -> int:
        present = await self._store.call("ZRANGEBYSCORE", run.episodes, episode_id, "+inf")
        for raw in present:
            await self._forget(EpisodeKeys(run.run_id, int(raw)))
        return len(present)

    async def _forget(self, keys: EpisodeKeys) -> None:
        while True:
            chunks, made = Layout(keys.chunks), Layout(keys.made)
            await chunks.cover(self._store, 1)
            await made.cover(self._store, 1)
            names = [*chunks.names(), *made.names()]
            rest = [keys.requests, keys.sample_ids, keys.groups, keys.issues, keys.steps, keys.selection]
            rest += map(keys.run.chunk, names)
            answer = await self._store.run(
                "roll_back",
                [keys.episode, keys.chunks, keys.made, keys.run.episodes, keys.run.usage, *rest],
                keys.episode_id, len(chunks.records) * RECORD.itemsize, len(made.records) * RECORD.itemsize,
            )  # fmt: skip
            self._sets.forget(keys)
            if answer[0] == b"gone":
                return  # else a put of before came in between
