"""Episodes from their opening to their end: what is stored, what is trained."""

import json
from typing import Any

from baton.errors import BackpressureError, BatonError, ConflictError, InvalidRequestError, NotReadyError
from services.buffer.batching import steps_per_pass
from services.buffer.chunks import RECORD, Chunks, Layout
from services.buffer.episode import missing
from services.buffer.keys import EpisodeKeys
from services.buffer.limits import Limits
from services.buffer.staging import Incoming, expired
from services.buffer.store import Store
from services.buffer.training_set import TrainingSets


class Ledger:
    """The episode operations. Each raises NotFoundError for an episode that was not opened, but for `end`."""

    def __init__(self, store: Store, chunks: Chunks, sets: TrainingSets, limits: Limits) -> None:
        self._store = store
        self._chunks = chunks
        self._sets = sets
        self._limits = limits

    async def open(
        self, keys: EpisodeKeys, expected: int, global_batch_size: int, micro_batch_size: int, relayed: bool, passes: int,
        unit: int,
    ) -> int:  # fmt: skip
        """Declares an episode (`expected` 0: dynamic, `passes` 0: at least one), of which every `unit` samples stay
        together; returns how many samples it holds.

        Raises ConflictError if it was declared otherwise before, InvalidRequestError if it could never be stored.
        """
        if micro_batch_size < 1 or global_batch_size < 1 or global_batch_size % micro_batch_size:
            raise InvalidRequestError(
                f"global_batch_size is {global_batch_size} and micro_batch_size {micro_batch_size}; the first must be a "
                "multiple of the second: see runtime.train_global_batch_size and runtime.train_micro_batch_size"
            )
        if micro_batch_size % unit or expected % unit:
            raise InvalidRequestError(
                f"samples_per_unit is {unit}, of which micro_batch_size {micro_batch_size} and expected_samples {expected} "
                "must be multiples: see runtime.train_micro_batch_size and runtime.sample_per_episode"
            )
        if 0 < self._limits.max_samples < expected:
            raise InvalidRequestError(
                f"{keys} is to have {expected} samples, more than store.max_samples ({self._limits.max_samples}) ever "
                "allows; raise that, or lower runtime.sample_per_episode"
            )
        wanted = [expected, global_batch_size, micro_batch_size, int(relayed), passes, unit]
        answer = await self._store.run(
            "open", [keys.episode, keys.run.episodes, keys.run.ended, keys.run.usage], keys.episode_id, *wanted
        )  # fmt: skip
        if answer == [b"ended"]:
            raise ConflictError(
                f"{keys} was trained and ended, and would be trained twice; go on with the next episode, or start a run of "
                "another name"
            )
        stored, *declared = map(int, answer)
        if declared != wanted:
            raise ConflictError(
                f"{keys} was opened before with expected_samples, global_batch_size, micro_batch_size, relayed, passes, "
                f"samples_per_unit = {declared}, and now with {wanted}; set the run file's sizes as they were, or start a "
                "run of another name"
            )
        return stored

    def incoming(self, keys: EpisodeKeys) -> Incoming:
        """Takes the samples of one put. With a budget nothing is written before all that it brings is known to fit."""
        return Incoming(self._store, keys.run, at_once=not self._limits.bounded)

    async def put(self, keys: EpisodeKeys, request_id: str, incoming: Incoming) -> tuple[int, int]:
        """Appends samples, all or none; returns (first position, samples stored). A repeated `request_id` changes nothing.

        Raises BackpressureError while the run has as much in the store as it may.
        """
        if not request_id:
            raise InvalidRequestError("request_id is empty; choose one, so that the put can be repeated safely")
        groups, columns = incoming.first_of_groups(), " ".join(incoming.columns)
        run = keys.run
        known = [keys.episode, keys.requests, keys.sample_ids, keys.groups, keys.issues, keys.chunks, run.usage, run.dead]
        told = (
            request_id, incoming.count, columns, incoming.records, incoming.bytes, self._limits.max_samples,
            self._limits.max_bytes, json.dumps(groups), json.dumps(incoming.sample_ids), keys.episode_id,
        )  # fmt: skip
        answer = [b"room"]
        if self._limits.bounded:  # a put that waits for room comes again and again
            answer = await self._store.run("put", known, *told)
        if answer == [b"room"]:
            answer = await self._store.run("put", [*known, *await incoming.write()], *told)
        if answer[0] != b"put":
            raise self._refusal(keys, answer, incoming.count, columns)
        incoming.keep(self._chunks)
        return answer[1], answer[2]

    async def close(self, keys: EpisodeKeys) -> tuple[int, int]:
        """Ends the rollout; returns (samples, steps per pass). Raises InvalidRequestError if a fixed episode lacks some."""
        match await self._store.run("close", [keys.episode]):
            case [b"closed", stored, global_batch_size]:
                return stored, steps_per_pass(stored, global_batch_size)
            case [b"short", stored, expected]:
                raise InvalidRequestError(
                    f"{keys} is fixed at {expected} samples, but has {stored}; put the others, or if the flow makes another "
                    "number than it is given, set runtime.stream_data_loader_type: dynamic"
                )
        raise missing(keys)

    async def end(self, keys: EpisodeKeys) -> int:
        """Ends an episode that is empty or trained; returns its samples, 0 if it was ended already.

        Its samples are removed, or become history if it is relayed. Raises NotReadyError while a step of a pass that was
        begun, or that it was opened for, is not acknowledged.
        """
        chunks, made = Layout(keys.chunks), Layout(keys.made)
        await chunks.cover(self._store, 1)
        await made.cover(self._store, 1)
        relayed = await self._store.call("HGET", keys.episode, "relayed") == b"1" and chunks.size > 0
        freed = [keys.issues, keys.requests, keys.selection, *map(keys.run.chunk, made.names())]
        if not relayed:
            freed += [keys.sample_ids, keys.groups, *map(keys.run.chunk, chunks.names())]
        run = keys.run
        answer = await self._store.run(
            "end",
            [keys.episode, keys.chunks, keys.made, keys.steps, run.episodes, run.usage, run.ended, run.relaying, *freed],
            keys.episode_id, len(chunks.records) * RECORD.itemsize, len(made.records) * RECORD.itemsize,
        )  # fmt: skip
        match answer:
            case [b"deleted", samples]:
                self._sets.forget(keys)
                return samples
            case [b"untrained", acked, steps, pass_index]:
                raise NotReadyError(
                    f"{keys} has {acked} of {steps} steps of pass {pass_index} acknowledged; delete it once all are"
                )
        raise NotReadyError(f"{keys} is still being rolled out; delete it once it is closed and trained")  # open, changed

    def _refusal(self, keys: EpisodeKeys, answer: list[Any], count: int, columns: str) -> BatonError:
        """The error for a Put that the script refused."""
        match answer:
            case [b"full", stored, expected]:
                return InvalidRequestError(
                    f"{keys} is fixed at {expected} samples and has {stored}; {count} more do not fit. If the flow makes "
                    "another number than it is given, set runtime.stream_data_loader_type: dynamic"
                )
            case [b"closed", stored]:
                return ConflictError(f"{keys} was closed with {stored} samples; put these into the next episode")
            case [b"columns", earlier]:
                odd = sorted(set(earlier.decode().split()) ^ set(columns.split()))
                return InvalidRequestError(
                    f"{', '.join(odd)}: in some puts of {keys} but not in others; fill a column in all of them or in none"
                )
            case [b"duplicate", sample_id]:
                return ConflictError(
                    f"{keys} has sample {sample_id.decode()} already, from a put with another request id; "
                    "repeat a put under its own request id, or give the new sample an id of its own"
                )
            case [b"budget", samples, size]:
                return BackpressureError(
                    f"{keys.run} has {samples} samples, {size} bytes, in the store, and {count} more exceed "
                    f"store.max_samples ({self._limits.max_samples}) or store.max_bytes ({self._limits.max_bytes}); the "
                    "put waits until episodes are trained; raise the limit if none will be"
                )
            case [b"ragged", unit]:
                return InvalidRequestError(
                    f"{count} samples are put, but {keys} keeps every {unit} together; put all samples of a pair, or of a "
                    "group, at once"
                )
            case [b"expired"]:
                return expired()
        return missing(keys)
