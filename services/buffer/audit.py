"""The proof, from the store alone, that nothing of a run is lost, trained twice or left over."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from services.buffer.batching import parse_step, steps_per_pass
from services.buffer.chunks import Chunks, Layout
from services.buffer.inspection import Inspection, State, pairs
from services.buffer.keys import EpisodeKeys, RunKeys, starting_with
from services.buffer.store import Store


@dataclass(slots=True)
class Report:
    """What was found. `faults` empty: clean."""

    faults: list[str] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    ended_episodes: int = 0
    ended_samples: int = 0
    optimizer_steps: int = 0
    dead: list[str] = field(default_factory=list)
    untrained: list[str] = field(default_factory=list)
    """Passes that are due and not wholly trained, and episodes that are open; no fault while they may still come."""


class Audit:
    """Reads all that a run has in the store, but the elements of arrays.

    A run that goes on changes between two reads, so a fault is one that a second look finds again.
    """

    def __init__(self, store: Store, chunks: Chunks, inspection: Inspection) -> None:
        self._store = store
        self._chunks = chunks
        self._inspection = inspection

    async def run(self, run: RunKeys) -> Report:
        """Checks samples, steps and what is left over."""
        report = await self._look(run)
        if report.faults:
            before, report = set(report.faults), await self._look(run)
            report.faults = [fault for fault in report.faults if fault in before]
        return report

    async def _look(self, run: RunKeys) -> Report:
        report, named = Report(), set()
        report.states = await self._inspection.states(await self._inspection.episode_keys(run))
        for state in report.states:
            keys = state.keys
            own, made = Layout(keys.chunks), Layout(keys.made)
            for layout in (own, made):
                await layout.cover(self._store, 1)
                named |= set(layout.names())
            await self._chunks_there(keys, made, report)
            if await self._chunks_there(keys, own, report):
                await self._samples(state, own, report)
        await self._steps(run, report)
        await self._usage(run, report)
        await self._left_over(run, named, report)
        dead = pairs(await self._store.call("HGETALL", run.dead))
        letters = {f"{what.decode()}: {reason.decode()}" for what, reason in dead}
        report.dead = sorted(letters | set(report.dead))
        return report

    async def _chunks_there(self, keys: EpisodeKeys, layout: Layout, report: Report) -> bool:
        """Checks that every chunk of a list is there, and for good; returns whether all can be read."""
        names = layout.names()
        lengths = await self._store.pipeline([("STRLEN", keys.run.chunk(name)) for name in names])
        expiries = await self._store.pipeline([("TTL", keys.run.chunk(name)) for name in names])
        readable = True
        for name, record, length, expiry in zip(names, layout.records, lengths, expiries, strict=True):
            if length < record["light"]:
                report.faults.append(f"{record['count']} samples of {keys} are lost: {keys.run.chunk(name)} is not there")
                readable = False
            elif expiry != -1:
                report.faults.append(f"{record['count']} samples of {keys} expire in {expiry} s: {keys.run.chunk(name)}")
        return readable

    async def _samples(self, state: State, layout: Layout, report: Report) -> None:
        """Checks that the episode has as many samples as it says, each once."""
        keys, stored = state.keys, state.episode.stored
        if layout.size != stored:
            report.faults.append(f"{keys} says that it has {stored} samples, but its chunks have {layout.size}")
        lights = await self._chunks.read_light(keys.run, layout)
        counts = Counter(sample_id for light in lights for sample_id in light.sample_ids)
        for sample_id in sorted(sample_id for sample_id, count in counts.items() if count > 1):
            report.faults.append(f"sample {sample_id} is {counts[sample_id]} times in {keys}")
        if (known := await self._store.call("SCARD", keys.sample_ids)) != len(counts):
            report.faults.append(f"{keys} knows {known} sample ids, but its chunks have {len(counts)}")

    async def _steps(self, run: RunKeys, report: Report) -> None:
        """Checks that every optimizer step trained one step, and every step of a finished pass was trained once."""
        scored = pairs(await self._store.call("ZRANGE", run.global_steps, 0, -1, "WITHSCORES"))
        trained = {name.decode(): int(float(number)) for name, number in scored}
        report.optimizer_steps = len(trained)
        numbers = np.sort(np.fromiter(trained.values(), np.int64, len(trained)))
        for earlier, later in pairwise(numbers):
            if later == earlier:
                report.faults.append(f"optimizer step {later} trained two steps")
            elif later != earlier + 1:
                report.faults.append(f"the optimizer steps between {earlier} and {later} trained nothing of this run")
        by_episode = Counter(int(name.split()[0]) for name in trained)
        for episode_id, record in sorted(pairs(await self._store.call("HGETALL", run.ended)), key=lambda pair: int(pair[0])):
            total, passes, steps, lost, left_out = map(int, record.split())
            report.ended_episodes += 1
            report.ended_samples += total * passes
            if by_episode[int(episode_id)] != passes * steps:
                report.faults.append(
                    f"episode {int(episode_id)} of {run} ended after {passes} passes of {steps} steps, but "
                    f"{by_episode[int(episode_id)]} steps of it were trained"
                )
            if lost:
                where = f"episode {int(episode_id)} of {run}"
                report.faults.append(f"{lost} prompt groups of {where} were issued and never put")
            if left_out:
                report.dead.append(f"{left_out} prompt groups of episode {int(episode_id)} gave no samples")
        for state in report.states:
            _check_passes(state, trained, report)
            _check_groups(state, report)

    async def _usage(self, run: RunKeys, report: Report) -> None:
        """Checks the counters that budgets go by."""
        used = dict(pairs(await self._store.call("HGETALL", run.usage)))
        made = await self._store.pipeline([("HMGET", s.keys.episode, "made", "made_bytes") for s in report.states])
        held = [row if not state.episode.ended else (0, 0) for state, row in zip(report.states, made, strict=True)]
        for at, name in enumerate(("samples", "bytes")):
            own = sum(getattr(state.episode, "stored" if name == "samples" else "bytes") for state in report.states)
            expected = own + sum(int(row[at] or 0) for row in held)
            if (counted := int(used.get(name.encode(), 0))) != expected:
                report.faults.append(f"{run} counts {counted} {name} in use, but its episodes have {expected}")

    async def _left_over(self, run: RunKeys, named: set[bytes], report: Report) -> None:
        """Checks that no chunk is kept that no episode names; one that expires is on its way in, or given up."""
        prefix = run.chunk(b"")
        names = {bytes.fromhex(key.decode().removeprefix(prefix)) async for key in self._store.scan(starting_with(prefix))}
        stray = sorted(names - named)
        expiries = await self._store.pipeline([("TTL", run.chunk(name)) for name in stray])
        for name, expiry in zip(stray, expiries, strict=True):
            if expiry == -1:
                report.faults.append(f"{run.chunk(name)} belongs to no episode of {run}")


def _check_passes(state: State, trained: dict[str, int], report: Report) -> None:
    keys, episode = state.keys, state.episode
    if episode.ended:
        return
    for step, record in state.steps.items():
        word, _, rest = record.partition(" ")
        number = trained.get(f"{keys.episode_id} {step}")
        if (word in ("trained", "acked")) != (number is not None) or (number is not None and rest != str(number)):
            report.faults.append(f"{step} of {keys} is {record!r}, but the optimizer step that trained it is {number}")
    if not episode.closed:
        held = f"{state.groups('issued', 'generated')} prompt groups are issued, {episode.stored} samples are stored"
        report.untrained.append(f"{keys} is open: {held}")
    if episode.total is None:
        if episode.closed and episode.stored:
            chosen = "its training set was not chosen"
            report.untrained += [f"pass {pass_index} of {keys}: {chosen}" for pass_index in range(max(episode.passes, 1))]
        return
    whole = steps_per_pass(episode.total, episode.global_batch_size)
    done = Counter(parse_step(step)[0] for step, record in state.steps.items() if record.startswith(("trained", "acked")))
    for pass_index in range(episode.current_pass):
        if done[pass_index] != whole:
            report.faults.append(f"pass {pass_index} of {keys} was left after {done[pass_index]} of {whole} steps")
    for pass_index in range(episode.current_pass, max(episode.passes, episode.current_pass + 1) if episode.closed else 0):
        if done[pass_index] < whole:
            report.untrained.append(f"pass {pass_index} of {keys}: {done[pass_index]} of {whole} steps are trained")


def _check_groups(state: State, report: Report) -> None:
    """A closed episode has all its prompt groups; of one that could not be made the reason is known."""
    if state.episode.closed and not state.episode.ended:
        for group, record in sorted(state.issues.items()):
            stage, attempt, _, _, rest = record.split(" ", 4)
            if stage == "failed":
                report.dead.append(f"episode {state.keys.episode_id} group {group}: {rest}")
            else:
                report.faults.append(f"group {group} of {state.keys} was {stage} (attempt {attempt}, {rest}) and never put")
