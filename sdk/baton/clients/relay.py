"""Client of the history and of the training sets that are chosen from it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from baton.api.buffer.v1 import relay_pb2 as pb
from baton.api.buffer.v1.relay_pb2_grpc import RelayServiceStub
from baton.api.common.v1 import samples_pb2
from baton.channel import ServiceClient
from baton.samples import Samples

REFERENCES_PER_MESSAGE = 100_000
"""1.6 MB."""
POSITIONS_PER_REQUEST = 100_000


@dataclass(frozen=True, slots=True)
class HistoryEpisode:
    """A relayed episode that is closed."""

    episode_id: int
    samples: int
    bytes: int
    columns: tuple[str, ...]
    """Names of the columns that its samples have, as in `Samples`."""


class TrimmedHistory(NamedTuple):
    """Ids of the episodes that were evicted, and how many of the newest are within the limits."""

    evicted: list[int]
    shown: int


class RelayClient(ServiceClient):
    """Reads the history, and makes training sets. Errors: see `baton.errors`."""

    SERVICE = "baton.api.buffer.v1.RelayService"
    STUB = RelayServiceStub
    RETRIED = ("ListHistory", "TrimHistory", "ReadColumns", "ReadSamples")

    async def list_history(self, run_id: str) -> list[HistoryEpisode]:
        """The relayed episodes that are closed, oldest first."""
        answer = await self._call("ListHistory", pb.ListHistoryRequest(run_id=run_id))
        columns = [tuple(names.split()) for names in answer.columns]
        rows = zip(answer.episode_ids, answer.samples, answer.bytes, columns, strict=True)
        return [HistoryEpisode(*row) for row in rows]

    async def trim_history(
        self, run_id: str, *, keep_episodes: int | None = None, keep_bytes: int | None = None, evict_for_bytes: bool = False,
        shown_from: int = 0, spared: Sequence[range] = (),
    ) -> TrimmedHistory:  # fmt: skip
        """Evicts the oldest episodes beyond a number or a size, and those before `shown_from`, but none that is `spared`.

        Raises BackpressureError if the size asks for an eviction and `evict_for_bytes` does not allow it.
        """
        request = pb.TrimHistoryRequest(
            run_id=run_id, keep_episodes=keep_episodes or 0, keep_bytes=keep_bytes or 0, evict_for_bytes=evict_for_bytes,
            shown_from=shown_from, spared=[pb.EpisodeRange(first=one.start, end=one.stop) for one in spared],
        )  # fmt: skip
        answer = await self._call("TrimHistory", request)
        return TrimmedHistory(list(answer.evicted_episode_ids), answer.shown_episodes)

    async def read_columns(
        self, run_id: str, episode_id: int, columns: Sequence[str]
    ) -> list[samples_pb2.SampleBatch]:  # fmt: skip
        """Chosen columns of all samples, as consecutive messages; of the columns of arrays the lengths alone."""
        request = pb.ReadColumnsRequest(run_id=run_id, episode_id=episode_id, columns=columns)
        return [answer.samples async for answer in self._stream("ReadColumns", request)]

    async def read_samples(self, run_id: str, episode_id: int, positions: Sequence[int]) -> Samples:
        """Whole samples of one episode, in the order of `positions`, which must not be empty."""
        parts = []
        for at in range(0, len(positions), POSITIONS_PER_REQUEST):
            some = positions[at : at + POSITIONS_PER_REQUEST]
            request = pb.ReadSamplesRequest(run_id=run_id, episode_id=episode_id, positions=some)
            parts += [Samples.from_proto(answer.samples) async for answer in self._stream("ReadSamples", request)]
        return Samples.concat(parts)

    async def select(
        self, run_id: str, episode_id: int, references: np.ndarray, made: Samples | None = None
    ) -> tuple[int, int]:  # fmt: skip
        """Makes an episode's training set, in this order. Returns (samples, optimizer steps per pass).

        `references` is int64 [samples, 2]: (episode, position in it), or (-1, place in `made`).
        """
        fields = {"run_id": run_id, "episode_id": episode_id}
        messages = partial(_select_requests, np.ascontiguousarray(references, "<i8"), made, fields)
        answer = await self._upload("SelectSamples", messages)
        return answer.total_samples, answer.steps_per_pass


def _select_requests(
    references: np.ndarray, made: Samples | None, fields: dict[str, Any]
) -> Iterator[pb.SelectSamplesRequest]:  # fmt: skip
    for part in () if made is None else made.split():
        yield pb.SelectSamplesRequest(**fields, made=part.to_proto())
    yield pb.SelectSamplesRequest(**fields)
    for at in range(0, len(references), REFERENCES_PER_MESSAGE):
        yield pb.SelectSamplesRequest(**fields, references=references[at : at + REFERENCES_PER_MESSAGE].tobytes())
