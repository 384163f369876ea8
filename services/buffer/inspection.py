"""What the ledger can tell about a run: its episodes by state, and where a sample is."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from baton.errors import NotFoundError
from baton.samples import Samples
from services.buffer.batching import Share, first_uses, parse_step, plan
from services.buffer.chunks import Chunks, Layout
from services.buffer.episode import Episode
from services.buffer.keys import ALL_RUNS, EpisodeKeys, RunKeys, run_of
from services.buffer.store import Store
from services.buffer.training_set import MADE, REFERENCE


@dataclass(frozen=True, slots=True)
class State:
    """One episode: its counters, its steps and prompt groups. Samples count once in a pass, where it first uses them."""

    keys: EpisodeKeys
    episode: Episode
    seed: int
    steps: dict[str, str]
    issues: dict[str, str]
    """Records of the prompt groups that are not stored."""

    @classmethod
    async def read(cls, store: Store, keys: EpisodeKeys) -> "State":
        """Raises NotFoundError if the episode was not opened, or was deleted."""
        episode = await Episode.read(store, keys)
        steps, issues, seed = await store.pipeline(
            [("HGETALL", keys.steps), ("HGETALL", keys.issues), ("HGET", keys.episode, "seed")]
        )
        records = {step.decode(): record.decode() for step, record in pairs(steps)}
        groups = {group.decode(): record.decode() for group, record in pairs(issues)}
        return cls(keys, episode, int(seed or 0), records, groups)

    def groups(self, *stages: str) -> int:
        """Prompt groups in one of these stages: issued, generated or failed."""
        return sum(record.split(" ", 1)[0] in stages for record in self.issues.values())

    def samples(self, state: str) -> int:
        """Samples of the current pass in steps of this state: leased, trained or acked."""
        total = 0
        for step, record in self.steps.items():
            pass_index, step_index = parse_step(step)
            if pass_index == self.episode.current_pass and record.split(" ", 1)[0] == state:
                total += first_uses(step_index, self.episode.global_batch_size, self.episode.available)
        return total


@dataclass(frozen=True, slots=True)
class Found:
    """One sample: which episode has it and where, or where among those that were `made` for its training set."""

    keys: EpisodeKeys
    position: int
    made: bool
    sample: Samples
    steps: list[str]
    """What became of each step that has it."""


def pairs(raw: dict | list) -> list[tuple[Any, Any]]:
    """The answer to HGETALL or ZRANGE WITHSCORES, which clients and versions of the protocol put differently."""
    if isinstance(raw, dict):
        return list(raw.items())
    if raw and isinstance(raw[0], list | tuple):
        return [tuple(pair) for pair in raw]
    return list(zip(raw[::2], raw[1::2], strict=True))


class Inspection:
    """Reads only."""

    def __init__(self, store: Store, chunks: Chunks) -> None:
        self._store = store
        self._chunks = chunks

    async def runs(self) -> list[str]:
        """Ids of the runs that have an episode in the store."""
        return sorted([run_of(key) async for key in self._store.scan(ALL_RUNS)])

    async def episodes(self, run_id: str) -> list[State]:
        """The run's episodes, oldest first; of no run (empty id) the newest episode of each."""
        if run_id:
            return await self.states(await self.episode_keys(RunKeys(run_id)))
        return await self.states([keys[-1] for run in await self.runs() if (keys := await self.episode_keys(RunKeys(run)))])

    async def states(self, all_keys: Sequence[EpisodeKeys]) -> list[State]:
        """Of those episodes that are still there."""
        found = []
        for keys in all_keys:
            with suppress(NotFoundError):  # it ended meanwhile
                found.append(await State.read(self._store, keys))
        return found

    async def episode(self, keys: EpisodeKeys) -> tuple[State, list[str]]:
        """One episode, and the ids of its stored groups in the order of arrival."""
        state = await State.read(self._store, keys)
        return state, [group.decode() for group in await self._store.call("ZRANGE", keys.groups, 0, -1)]

    async def episode_keys(self, run: RunKeys) -> list[EpisodeKeys]:
        """Of the episodes that the store holds, oldest first."""
        return [EpisodeKeys(run.run_id, int(raw)) for raw in await self._store.call("ZRANGE", run.episodes, 0, -1)]

    async def find(self, run: RunKeys, sample_id: str) -> Found:
        """One sample, that was put or that a relay function made. Raises NotFoundError."""
        all_keys = await self.episode_keys(run)
        held = await self._store.pipeline([("SISMEMBER", keys.sample_ids, sample_id) for keys in all_keys])
        lists = [(keys, keys.chunks, keys.episode_id) for keys, has in zip(all_keys, held, strict=True) if has]
        for keys, key, stored_in in lists or [(keys, keys.made, MADE) for keys in all_keys]:
            layout = Layout(key)
            await layout.cover(self._store, 1)
            if (position := await self._position(keys.run, layout, sample_id)) is not None:
                [sample] = await self._chunks.read(keys.run, layout, np.asarray([position]))
                steps = await self._steps(all_keys if stored_in != MADE else [keys], (stored_in, position))
                return Found(keys, position, stored_in == MADE, sample, steps)
        raise NotFoundError(
            f"{run} has no sample {sample_id!r} in the store: it was never put, or its episode was trained and freed"
        )

    async def _position(self, run: RunKeys, layout: Layout, sample_id: str) -> int | None:
        before = 0
        for light in await self._chunks.read_light(run, layout):
            if sample_id in light.sample_ids:
                return before + list(light.sample_ids).index(sample_id)
            before += light.size
        return None

    async def _steps(self, all_keys: list[EpisodeKeys], reference: tuple[int, int]) -> list[str]:
        """The records of all steps that have the sample, of its own episode or of one that it is relayed in."""
        found = []
        for state in await self.states(all_keys):
            keys = state.keys
            places = await self._places(state, reference)
            for step, record in sorted(state.steps.items(), key=lambda item: parse_step(item[0])):
                pass_index, step_index = parse_step(step)
                share, episode = Share(pass_index, step_index, 0, 1, state.seed), state.episode
                planned = plan(share, keys.episode_id, episode.total, episode.global_batch_size, episode.unit)
                if planned is not None and np.isin(planned.positions, places).any():
                    found.append(f"episode {keys.episode_id}, pass {pass_index}, step {step_index}: {record}")
        return found

    async def _places(self, state: State, reference: tuple[int, int]) -> np.ndarray:
        """Where in the episode's training set the sample is."""
        stored_in, position = reference
        if not state.episode.relayed:
            return np.asarray([position] if state.keys.episode_id == stored_in else [], np.int64)
        references = np.frombuffer(await self._store.call("GET", state.keys.selection) or b"", REFERENCE)
        return np.flatnonzero((references["episode"] == stored_in) & (references["position"] == position))
