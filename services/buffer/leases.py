"""Handing out steps: waiting for their samples and for whoever holds them, reading them, and the acknowledgement."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np

from baton.errors import ConflictError, DeadLetterError, DeadlineError, InvalidRequestError, LeaseLostError, NotFoundError
from baton.samples import Samples
from services.buffer.batching import LeaseId, Plan, Share, cut_by_tokens, parse_step, plan, steps_per_pass
from services.buffer.episode import Episode, missing
from services.buffer.keys import EpisodeKeys
from services.buffer.limits import Limits
from services.buffer.store import Store
from services.buffer.training_set import TrainingSets

POLL_S = 0.02
"""Between two looks at an episode that lacks samples: one small command each."""
HELD_POLL_S = 0.2
"""Between two looks at a step that somebody else holds."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Samples to hand out, in one or more parts; `wrapped` is bool [size]."""

    lease_id: LeaseId
    parts: list[Samples]
    wrapped: np.ndarray


@dataclass(frozen=True, slots=True)
class Request:
    """One rank's wish. `micro_batch_tokens` 0: micro-batches have the episode's number of samples."""

    share: Share
    lessee: str
    micro_batch_tokens: int
    deadline: float
    """On time.monotonic()."""
    wait_s: float


class Leases:
    """Leases steps of an episode to data-parallel ranks. State is in the store only."""

    def __init__(self, store: Store, sets: TrainingSets, limits: Limits) -> None:
        self._store = store
        self._sets = sets
        self._limits = limits

    async def lease(
        self, keys: EpisodeKeys, share: Share, *, lessee: str, micro_batch_tokens: int, wait_s: float
    ) -> AsyncIterator[MicroBatch]:
        """Yields the share's micro-batches, each as soon as its samples are stored.

        Raises DeadlineError if they are not within `wait_s` in all, or if another lessee holds the step for longer;
        ConflictError if the step is trained, DeadLetterError if it was given up, and InvalidRequestError for a step or
        a pass that the episode does not have.
        """
        if not (math.isfinite(wait_s) and wait_s >= 0):
            raise InvalidRequestError(f"wait_s is {wait_s}; it must be a number of seconds from 0")
        _check_lessee(lessee)
        request = Request(share, lessee, micro_batch_tokens, time.monotonic() + wait_s, wait_s)
        episode = await Episode.read(self._store, keys)
        _check_share(keys, share, episode)
        batches = self._by_tokens if micro_batch_tokens else self._by_number
        async for batch in batches(keys, request, episode):
            yield batch

    async def _by_number(self, keys: EpisodeKeys, request: Request, episode: Episode) -> AsyncIterator[MicroBatch]:
        size, lease_id = episode.micro_batch_size, None
        for start in range(0, episode.global_batch_size // request.share.ranks, size):
            cut = slice(start, start + size)
            episode, found = await self._wait(keys, request, episode, cut)
            lease_id = lease_id or await self._take(keys, request)
            yield MicroBatch(
                lease_id, await self._sets.read(keys, episode, found.positions[cut]), found.wrapped[cut]
            )  # fmt: skip

    async def _by_tokens(self, keys: EpisodeKeys, request: Request, episode: Episode) -> AsyncIterator[MicroBatch]:
        episode, found = await self._wait(keys, request, episode, slice(None))
        lease_id = await self._take(keys, request)
        samples = Samples.concat(await self._sets.read(keys, episode, found.positions))
        for cut in cut_by_tokens(samples.token_counts(), request.micro_batch_tokens, episode.unit):
            yield MicroBatch(lease_id, [samples.take(np.arange(cut.start, cut.stop))], found.wrapped[cut])

    async def renew(self, keys: EpisodeKeys, lease_id: LeaseId, lessee: str) -> tuple[LeaseId, float]:
        """Starts the lease's time again; returns (lease id, its seconds). Raises LeaseLostError if another has the step."""
        _check_lessee(lessee)
        answer = await self._store.run(
            "renew", [keys.steps], lease_id.step, lease_id.attempt, lessee, self._limits.lease_timeout_s
        )
        if answer[0] != b"leased":
            raise _lost(keys, lease_id, answer)
        return LeaseId(lease_id.step, answer[1]), self._limits.lease_timeout_s

    async def release(self, keys: EpisodeKeys, lease_id: LeaseId, reason: str) -> None:
        """Gives the step back untrained; raises LeaseLostError if somebody else has it now."""
        answer = await self._store.run("release", [keys.steps], lease_id.step, lease_id.attempt, reason or "no reason given")
        if answer[0] != b"released":
            raise _lost(keys, lease_id, answer)

    async def ack(self, keys: EpisodeKeys, lease_id: LeaseId, global_step: int) -> int:
        """Marks the step as trained by optimizer step `global_step`; returns the trained steps of its pass.

        The attempt that was acknowledged may repeat it. Raises NotFoundError if the step was not leased, LeaseLostError if
        the lease has expired or is another's, ConflictError if another optimizer step trained it, or this one trained
        another step.
        """
        pass_index, _ = parse_step(lease_id.step)
        becomes = "acked" if self._limits.ack_on_step else "trained"
        answer = await self._store.run(
            "ack", [keys.episode, keys.steps, keys.run.global_steps, keys.run.dead],
            lease_id.step, pass_index, lease_id.attempt, global_step, becomes, f"{keys.episode_id} {lease_id.step}",
            _dead_letter(keys, lease_id.step),
        )  # fmt: skip
        match answer:
            case [b"acked", steps]:
                return steps
            case [b"other", earlier]:
                raise ConflictError(
                    f"{lease_id.step} of {keys} was trained by optimizer step {earlier.decode()}, not {global_step}; "
                    "the trainer went back to an older checkpoint, or two trainers share the run"
                )
            case [b"taken", other]:
                episode_id, step = other.decode().split()
                raise ConflictError(
                    f"optimizer step {global_step} trained {step} of episode {episode_id} already, and cannot have trained "
                    f"{lease_id.step} of {keys} too; the trainer went back to an older checkpoint, or two share the run"
                )
        raise _lost(keys, lease_id, answer)

    async def _wait(
        self, keys: EpisodeKeys, request: Request, episode: Episode, cut: slice
    ) -> tuple[Episode, Plan]:  # fmt: skip
        """The episode and the share's plan, once the samples of that cut of it are there."""
        while (found := _ready(keys, request.share, episode, cut)) is None:
            if time.monotonic() > request.deadline:
                raise _too_late(keys, request, episode, cut)
            await asyncio.sleep(POLL_S)
            episode = await Episode.read(self._store, keys)
        return episode, found

    async def _take(self, keys: EpisodeKeys, request: Request) -> LeaseId:
        """Records the lease, once nobody else holds the step."""
        step = request.share.step
        name = _dead_letter(keys, step)
        while True:
            answer = await self._store.run(
                "lease", [keys.episode, keys.steps, keys.run.dead, keys.run.usage],
                step, request.share.pass_index, request.lessee, self._limits.lease_timeout_s, self._limits.max_attempts,
                name, request.share.shuffle_seed,
            )  # fmt: skip
            match answer:
                case [b"leased", attempt]:
                    return LeaseId(step, attempt)
                case [b"missing"]:
                    raise missing(keys)
                case [b"ended"]:
                    raise ConflictError(f"{keys} was trained and ended; go on with the next episode")
                case [b"trained", global_step]:
                    raise ConflictError(
                        f"{step} of {keys} was trained by optimizer step {global_step.decode()}; go on with the next step"
                    )
                case [b"seed", seed]:
                    raise ConflictError(
                        f"shuffle_seed is {request.share.shuffle_seed}, but {keys} is shuffled by {int(seed)}; "
                        "ranks that disagree would train some samples twice: give all of them runtime.seed"
                    )
                case [b"dead", reason]:
                    raise DeadLetterError(
                        f"{step} of {keys} was given up after {self._limits.max_attempts} attempts: {reason.decode()}; see "
                        f"what is wrong with its samples (baton relay audit {keys.run_id}), or raise store.max_attempts"
                    )
                case [b"held", lessee, left]:
                    if time.monotonic() > request.deadline:
                        raise DeadlineError(
                            f"{step} of {keys} is leased by {lessee.decode() or 'somebody'} for {float(left):.0f} s more, "
                            f"and {request.wait_s:g} s were not enough to wait for that; does a second trainer use the run? "
                            "A dead one's lease ends by itself: see store.lease_timeout_s"
                        )
            await asyncio.sleep(HELD_POLL_S)


def _dead_letter(keys: EpisodeKeys, step: str) -> str:
    return f"episode {keys.episode_id} step {step}"


def _lost(keys: EpisodeKeys, lease_id: LeaseId, answer: list) -> NotFoundError | LeaseLostError:
    match answer:
        case [b"foreign", attempt, lessee]:
            why = f"was leased again since, as attempt {int(attempt)}, by {lessee.decode() or 'somebody'}"
        case [b"expired", late]:
            why = f"is a lease that expired {float(late):.1f} s ago; renew it first"
        case [b"trained", global_step]:
            why = f"was trained by optimizer step {global_step.decode()}"
        case [b"late", global_step, attempt]:
            why = f"was leased again since, and attempt {int(attempt)} trained it, by optimizer step {global_step.decode()}"
        case _:
            return NotFoundError(f"{lease_id} of {keys} is not leased; give the lease_id that Lease gave")
    return LeaseLostError(f"{lease_id} of {keys} {why}")


def _check_lessee(lessee: str) -> None:
    """Raises InvalidRequestError if nobody could be told from others by it."""
    if not lessee:
        raise InvalidRequestError(
            "lessee is empty, so that two trainers would have the step at once; give every trainer a name of its own, the "
            "same on all its ranks"
        )


def _check_share(keys: EpisodeKeys, share: Share, episode: Episode) -> None:
    """Raises InvalidRequestError for a pass that the episode does not have, or ranks that cannot have equally many
    micro-batches."""
    if 0 < episode.passes <= share.pass_index:
        raise InvalidRequestError(
            f"pass_index is {share.pass_index}, but {keys} was opened for {episode.passes} passes, from 0; see "
            "runtime.num_training_epoch"
        )
    if not 0 <= share.rank < share.ranks:
        raise InvalidRequestError(f"data_parallel_rank is {share.rank}; it must be below data_parallel_size, {share.ranks}")
    if episode.global_batch_size % (episode.micro_batch_size * share.ranks):
        raise InvalidRequestError(
            f"global_batch_size {episode.global_batch_size} is not a multiple of micro_batch_size x data_parallel_size, "
            f"{episode.micro_batch_size} x {share.ranks}; change runtime.train_global_batch_size or the number of ranks"
        )


def _ready(keys: EpisodeKeys, share: Share, episode: Episode, cut: slice) -> Plan | None:
    """The plan if that cut of it can be read now. Raises InvalidRequestError if the step does not exist."""
    total = episode.total
    if total is not None and share.step_index >= (steps := steps_per_pass(total, episode.global_batch_size)):
        raise InvalidRequestError(
            f"step_index is {share.step_index}, but a pass over the {total} samples of {keys} has {steps} steps, from 0"
        )
    if episode.relayed and total is None:
        return None
    found = plan(share, keys.episode_id, total, episode.global_batch_size, episode.unit)
    return found if found and found.positions[cut].max() < episode.available else None


def _too_late(keys: EpisodeKeys, request: Request, episode: Episode, cut: slice) -> DeadlineError:
    share = request.share
    found = plan(share, keys.episode_id, episode.total, episode.global_batch_size, episode.unit)
    if episode.relayed:
        need = "needs what the relay function selects"
    else:
        need = f"needs {found.positions[cut].max() + 1}" if found else "needs the episode to be closed"
    return DeadlineError(
        f"step {share.step_index} of pass {share.pass_index} of {keys} {need}, but after {request.wait_s:g} s "
        f"{episode.stored} samples are stored; see whether the rollout is still at work, or wait longer"
    )
