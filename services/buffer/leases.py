"""Handing out steps: waiting for their samples, reading them, and the acknowledgement."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np

from baton.errors import ConflictError, DeadlineError, InvalidRequestError, NotFoundError
from baton.samples import Samples
from services.buffer.batching import Plan, Share, parse_lease_id, plan, steps_per_pass
from services.buffer.chunks import ChunkCache, Layout
from services.buffer.episode import Episode, missing
from services.buffer.keys import EpisodeKeys
from services.buffer.store import Store

POLL_S = 0.02
"""Between two looks at an episode that lacks samples: one small command each."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Samples to hand out; `wrapped` is bool [size]."""

    samples: Samples
    wrapped: np.ndarray


class Leases:
    """Leases steps of an episode to data-parallel ranks. State is in the store only."""

    def __init__(self, store: Store, chunks: ChunkCache, lease_timeout_s: float) -> None:
        self._store = store
        self._chunks = chunks
        self._lease_timeout_s = lease_timeout_s

    async def lease(self, keys: EpisodeKeys, share: Share, wait_s: float) -> AsyncIterator[MicroBatch]:
        """Yields the share's micro-batches, each as soon as its samples are stored.

        Raises DeadlineError if they are not within `wait_s` in all, ConflictError if the step is acknowledged, and
        InvalidRequestError for a step that the episode does not have.
        """
        if not (math.isfinite(wait_s) and wait_s >= 0):
            raise InvalidRequestError(f"wait_s is {wait_s}; it must be a number of seconds from 0")
        deadline = time.monotonic() + wait_s
        episode = await Episode.read(self._store, keys)
        layout = Layout()
        for index in range(_micro_batches(share, episode)):
            while (ready := _ready(keys, share, episode, index)) is None:
                if time.monotonic() > deadline:
                    raise _too_late(keys, share, episode, index, wait_s)
                await asyncio.sleep(POLL_S)
                episode = await Episode.read(self._store, keys)
            if index == 0:
                await self._record(keys, share)
            positions, wrapped = ready.positions[index], ready.wrapped[index]
            if positions.max() >= layout.size:
                await layout.extend(self._store, keys)
            yield MicroBatch(await self._chunks.read(keys, layout, positions), wrapped)

    async def ack(self, keys: EpisodeKeys, lease_id: str, global_step: int) -> int:
        """Marks the step as trained by optimizer step `global_step`; returns the acknowledged steps of its pass.

        Raises NotFoundError if it was not leased, ConflictError if another optimizer step trained it.
        """
        pass_index, _ = parse_lease_id(lease_id)
        match await self._store.run("ack", [keys.episode, keys.steps], lease_id, pass_index, global_step):
            case [b"acked", steps]:
                return steps
            case [b"other", earlier]:
                raise ConflictError(
                    f"{lease_id} of {keys} was trained by optimizer step {earlier.decode()}, not {global_step}; "
                    "the trainer went back to an older checkpoint, or two trainers share the run"
                )
        raise NotFoundError(f"{lease_id!r} of {keys} is not leased; acknowledge the lease_id that Lease gave")

    async def _record(self, keys: EpisodeKeys, share: Share) -> None:
        answer = await self._store.run(
            "lease", [keys.episode, keys.steps], share.lease_id, share.pass_index, self._lease_timeout_s
        )
        match answer:
            case [b"missing"]:
                raise missing(keys)
            case [b"acked", global_step]:
                raise ConflictError(
                    f"step {share.step_index} of pass {share.pass_index} of {keys} was trained by optimizer step "
                    f"{global_step.decode()}; go on with the next step"
                )


def _micro_batches(share: Share, episode: Episode) -> int:
    """Micro-batches of a share. Raises InvalidRequestError if the ranks cannot have equally many."""
    if not 0 <= share.rank < share.ranks:
        raise InvalidRequestError(f"data_parallel_rank is {share.rank}; it must be below data_parallel_size, {share.ranks}")
    each, rest = divmod(episode.global_batch_size, episode.micro_batch_size * share.ranks)
    if rest:
        raise InvalidRequestError(
            f"global_batch_size {episode.global_batch_size} is not a multiple of micro_batch_size x data_parallel_size, "
            f"{episode.micro_batch_size} x {share.ranks}; change runtime.train_global_batch_size or the number of ranks"
        )
    return each


def _ready(keys: EpisodeKeys, share: Share, episode: Episode, index: int) -> Plan | None:
    """The plan if its micro-batch `index` can be read now. Raises InvalidRequestError if the step does not exist."""
    total = episode.total
    if total is not None and share.step_index >= (steps := steps_per_pass(total, episode.global_batch_size)):
        raise InvalidRequestError(
            f"step_index is {share.step_index}, but a pass over the {total} samples of {keys} has {steps} steps, from 0"
        )
    found = plan(share, keys.episode_id, total, episode.global_batch_size, episode.micro_batch_size)
    return found if found and found.positions[index].max() < episode.stored else None


def _too_late(keys: EpisodeKeys, share: Share, episode: Episode, index: int, wait_s: float) -> DeadlineError:
    found = plan(share, keys.episode_id, episode.total, episode.global_batch_size, episode.micro_batch_size)
    need = f"needs {found.positions[index].max() + 1}" if found else "needs the episode to be closed"
    return DeadlineError(
        f"step {share.step_index} of pass {share.pass_index} of {keys} {need}, but after {wait_s:g} s {episode.stored} "
        "samples are stored; see whether the rollout is still at work, or wait longer"
    )
