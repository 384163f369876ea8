"""Episodes from their opening to their deletion: what is stored, what is trained."""

import os
from dataclasses import dataclass
from typing import Any

from baton.api.common.v1 import samples_pb2
from baton.errors import BatonError, ConflictError, InvalidRequestError, NotReadyError
from baton.samples import Samples
from services.buffer.batching import first_uses, parse_lease_id, steps_per_pass
from services.buffer.chunks import RECORD, ChunkCache, Layout, record
from services.buffer.episode import Episode, missing
from services.buffer.keys import EpisodeKeys
from services.buffer.store import Store


@dataclass(frozen=True, slots=True)
class Counts:
    """An episode's samples by state, in the pass that was leased last."""

    stored: int
    leased: int
    trained: int
    closed: bool
    group_ids: list[str]


class Ledger:
    """The episode operations. Each raises NotFoundError for an episode that was not opened, but for `delete`."""

    def __init__(self, store: Store, chunks: ChunkCache) -> None:
        self._store = store
        self._chunks = chunks

    async def open(self, keys: EpisodeKeys, expected: int, global_batch_size: int, micro_batch_size: int) -> int:
        """Declares an episode (`expected` 0: dynamic); returns how many samples it holds.

        Raises ConflictError if it was declared otherwise before.
        """
        if micro_batch_size < 1 or global_batch_size < 1 or global_batch_size % micro_batch_size:
            raise InvalidRequestError(
                f"global_batch_size is {global_batch_size} and micro_batch_size {micro_batch_size}; the first must be a "
                "multiple of the second: see runtime.train_global_batch_size and runtime.train_micro_batch_size"
            )
        wanted = [expected, global_batch_size, micro_batch_size]
        stored, *declared = map(int, await self._store.run("open", [keys.episode], *wanted))
        if declared != wanted:
            raise ConflictError(
                f"{keys} was opened before with expected_samples, global_batch_size, micro_batch_size = {declared}, and now "
                f"with {wanted}; set the run file's sizes as they were, or start a run of another name"
            )
        return stored

    async def put(self, keys: EpisodeKeys, request_id: str, message: samples_pb2.SampleBatch) -> tuple[int, int]:
        """Appends samples; returns (first position, samples stored). A repeated `request_id` changes nothing."""
        samples = _decode(request_id, message)
        first_of_group: dict[str, int] = {}
        for at, group in enumerate(samples.group_ids or []):
            first_of_group.setdefault(group, at)
        name, count, payload = os.urandom(16), len(samples), message.SerializeToString()
        columns = " ".join(field.name for field, _ in message.ListFields() if field.name not in ("size", "sample_ids"))
        answer = await self._store.run(
            "put",
            [keys.episode, keys.requests, keys.sample_ids, keys.groups, keys.chunks, keys.chunk(name)],
            request_id, count, columns, record(count, name), payload, len(first_of_group),
            *(value for group, at in first_of_group.items() for value in (at, group)), *samples.sample_ids,
        )  # fmt: skip
        if answer[0] != b"put":
            raise _refusal(keys, answer, count, columns)
        self._chunks.add(name, samples, len(payload))
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

    async def counts(self, keys: EpisodeKeys) -> Counts:
        """Counts the samples by state; each counts once in a pass, where the pass first uses it."""
        episode = await Episode.read(self._store, keys)
        steps = await self._store.call("HGETALL", keys.steps)
        groups = await self._store.call("ZRANGE", keys.groups, 0, -1)
        tally = {b"leased": 0, b"acked": 0}
        for lease_id, value in steps.items():
            pass_index, step_index = parse_lease_id(lease_id.decode())
            if pass_index == episode.current_pass:
                tally[value.split()[0]] += first_uses(step_index, episode.global_batch_size, episode.stored)
        names = [group.decode() for group in groups]
        return Counts(episode.stored, tally[b"leased"], tally[b"acked"], episode.closed, names)

    async def delete(self, keys: EpisodeKeys) -> int:
        """Frees an episode that is empty or trained; returns how many samples were removed, 0 if it was gone already.

        Raises NotReadyError while a step of its newest pass is not acknowledged.
        """
        layout = Layout()
        await layout.extend(self._store, keys)
        names = layout.names()
        freed = [keys.episode, keys.chunks, keys.requests, keys.sample_ids, keys.groups, keys.steps, *map(keys.chunk, names)]
        match await self._store.run("delete", freed, len(names) * RECORD.itemsize):
            case [b"deleted", samples]:
                return samples
            case [b"untrained", acked, steps, pass_index]:
                raise NotReadyError(
                    f"{keys} has {acked} of {steps} steps of pass {pass_index} acknowledged; delete it once all are"
                )
        raise NotReadyError(f"{keys} is still being rolled out; delete it once it is closed and trained")  # open, changed


def _decode(request_id: str, message: samples_pb2.SampleBatch) -> Samples:
    """The samples of a Put that is well formed in itself."""
    if not request_id:
        raise InvalidRequestError("request_id is empty; choose one, so that the put can be repeated safely")
    if not message.size:
        raise InvalidRequestError("samples is empty; put at least one")
    try:
        samples = Samples.from_proto(message)
    except ValueError as error:
        raise InvalidRequestError(f"{error}; every column has one row per sample, or none at all") from None
    seen: set[str] = set()
    for sample_id in samples.sample_ids:
        if sample_id in seen:
            raise InvalidRequestError(f"sample id {sample_id} occurs twice in one put; give every sample an id of its own")
        seen.add(sample_id)
    return samples


def _refusal(keys: EpisodeKeys, answer: list[Any], count: int, columns: str) -> BatonError:
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
    return missing(keys)
