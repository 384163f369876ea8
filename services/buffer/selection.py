"""The training set of a relayed episode: references to stored samples, and samples that were made for it."""

from collections.abc import Sequence

import numpy as np

from baton.errors import BackpressureError, BatonError, ConflictError, InvalidRequestError, NotFoundError, NotReadyError
from services.buffer.batching import steps_per_pass
from services.buffer.episode import missing
from services.buffer.keys import EpisodeKeys, RunKeys
from services.buffer.limits import Limits
from services.buffer.staging import Incoming, expired
from services.buffer.store import Store
from services.buffer.training_set import MADE, REFERENCE
from services.buffer.units import check_units


class Selections:
    """Makes training sets. State is in the store only."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits

    def made(self, run: RunKeys) -> Incoming:
        """Takes the samples that were made for a training set."""
        what = "the samples that the relay function changed or made have"
        remedy = "change fewer: a changed sample is sent and stored whole, one that is not is a mere reference"
        return Incoming(self._store, run, at_once=False, what=what, remedy=remedy)

    async def select(
        self, keys: EpisodeKeys, made: Incoming, references: bytes
    ) -> tuple[int, int]:  # fmt: skip
        """Makes the training set; returns (samples, steps per pass). The same set again changes nothing.

        Raises ConflictError if the episode has another one, NotFoundError for a sample that is not stored (any more),
        BackpressureError if the made samples exceed what the run may have in the store, and InvalidRequestError for an
        episode that is not relayed, samples that cannot be trained together, or a pair that is not whole.
        """
        if len(references) % REFERENCE.itemsize:
            raise InvalidRequestError(f"references has {len(references)} bytes; a reference takes {REFERENCE.itemsize}")
        chosen = np.frombuffer(references, REFERENCE)
        limits = _limits(chosen, made.count)
        referred = [EpisodeKeys(keys.run_id, episode_id) for episode_id in limits]
        await self._check_columns(referred, made)
        await check_units(self._store, keys, chosen, made)
        chunk_keys = await made.write()
        run = keys.run
        answer = await self._store.run(
            "select",
            [keys.episode, keys.selection, keys.made, run.relaying, run.usage, *chunk_keys, *(k.episode for k in referred)],
            keys.episode_id, len(chosen), references, made.records, made.count, made.bytes, len(chunk_keys),
            " ".join(map(str, limits)), self._limits.max_samples, self._limits.max_bytes, *limits.values(),
        )  # fmt: skip
        match answer:
            case [b"selected", total, global_batch_size]:
                return total, steps_per_pass(total, global_batch_size)
            case [b"ragged", unit]:
                raise InvalidRequestError(
                    f"{len(chosen)} samples are selected, but {keys} keeps every {unit} together; select whole pairs, or "
                    "groups"
                )
            case [b"budget", samples, size]:
                raise BackpressureError(
                    f"{run} has {samples} samples, {size} bytes, in the store, and what the relay function made, "
                    f"{made.count} samples, {made.bytes} bytes, exceeds store.max_samples ({self._limits.max_samples}) or "
                    f"store.max_bytes ({self._limits.max_bytes}); raise the limit, lower "
                    "runtime.max_relay_episode, or change fewer samples"
                )
            case [b"gone", at]:
                raise NotFoundError(f"{referred[at]} has no such sample any more: it was evicted; select from ListHistory")
        raise _refusal(keys, answer)

    async def _check_columns(self, referred: Sequence[EpisodeKeys], made: Incoming) -> None:
        """Raises InvalidRequestError if the samples do not all have the same columns."""
        found = await self._store.pipeline([("HGET", keys.episode, "columns") for keys in referred])
        columns = {str(keys): raw.decode().split() for keys, raw in zip(referred, found, strict=True) if raw}
        if made.count:
            columns["the samples that were made"] = made.columns
        first = next(iter(columns), None)
        for where, names in columns.items():
            if odd := set(names) ^ set(columns[first]):
                raise InvalidRequestError(
                    f"{', '.join(sorted(odd))}: only one of {first} and {where} has it; samples that are trained together "
                    "need the same columns, so leave out either"
                )


def _limits(chosen: np.ndarray, made: int) -> dict[int, int]:
    """Of each episode that is referred to, one more than the largest position. Raises InvalidRequestError."""
    if len(chosen) and chosen["position"].min() < 0:
        raise InvalidRequestError(f"references: position {chosen['position'].min()}; positions are counted from 0")
    limits = {}
    for episode_id in map(int, np.unique(chosen["episode"])):
        limit = int(chosen["position"][chosen["episode"] == episode_id].max()) + 1
        if episode_id != MADE:
            limits[episode_id] = limit
        elif limit > made:
            raise InvalidRequestError(f"references: made sample {limit - 1} is chosen, but {made} were sent")
    return limits


def _refusal(keys: EpisodeKeys, answer: list) -> BatonError:
    match answer:
        case [b"plain"]:
            return InvalidRequestError(f"{keys} is not relayed, it trains its own samples; open it with relayed set")
        case [b"open"]:
            return NotReadyError(f"{keys} is still being rolled out; close it, then select")
        case [b"other"]:
            return ConflictError(
                f"{keys} has another training set already, and it never changes; read how far it is trained"
            )
        case [b"expired"]:
            return expired()
    return missing(keys)
