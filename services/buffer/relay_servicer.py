"""The gRPC face of the history and the training sets chosen from it."""

from collections.abc import AsyncIterator

import grpc

from baton.api.buffer.v1 import relay_pb2 as pb
from baton.api.buffer.v1.relay_pb2_grpc import RelayServiceServicer
from baton.errors import InvalidRequestError
from baton.samples import Samples
from services.buffer.chunks import Chunk
from services.buffer.history import History
from services.buffer.keys import EpisodeKeys, RunKeys
from services.buffer.selection import Selections


class RelayServicer(RelayServiceServicer):
    """Implements RelayService; the errors are those of the domain calls."""

    def __init__(self, history: History, selections: Selections) -> None:
        self._history = history
        self._selections = selections

    async def ListHistory(self, request: pb.ListHistoryRequest, context: grpc.aio.ServicerContext) -> pb.ListHistoryResponse:
        kept = await self._history.episodes(RunKeys(request.run_id))
        return pb.ListHistoryResponse(
            episode_ids=[episode.episode_id for episode in kept],
            samples=[episode.samples for episode in kept],
            bytes=[episode.bytes for episode in kept],
            columns=[episode.columns for episode in kept],
        )

    async def TrimHistory(self, request: pb.TrimHistoryRequest, context: grpc.aio.ServicerContext) -> pb.TrimHistoryResponse:
        spared = [range(one.first, one.end) for one in request.spared]
        evicted, shown = await self._history.trim(
            RunKeys(request.run_id), request.keep_episodes, request.keep_bytes, request.evict_for_bytes,
            request.shown_from, spared,
        )  # fmt: skip
        return pb.TrimHistoryResponse(evicted_episode_ids=evicted, shown_episodes=shown)

    async def ReadColumns(
        self, request: pb.ReadColumnsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.ReadColumnsResponse]:
        async for samples in self._history.columns(EpisodeKeys(request.run_id, request.episode_id), request.columns):
            yield pb.ReadColumnsResponse(samples=samples)

    async def ReadSamples(
        self, request: pb.ReadSamplesRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.ReadSamplesResponse]:
        async for samples in self._history.samples(EpisodeKeys(request.run_id, request.episode_id), request.positions):
            yield pb.ReadSamplesResponse(samples=samples.to_proto())

    async def SelectSamples(
        self, request_iterator: AsyncIterator[pb.SelectSamplesRequest], context: grpc.aio.ServicerContext
    ) -> pb.SelectSamplesResponse:
        keys, made, references = None, None, []
        async for request in request_iterator:
            if keys is None:
                keys = EpisodeKeys(request.run_id, request.episode_id)
                made = self._selections.made(keys.run)
            if request.HasField("made"):
                await made.add(Chunk.of(Samples.from_proto(request.made)))
            references.append(request.references)
        if keys is None:
            raise InvalidRequestError("the stream is empty; name the run and the episode in its first message")
        total, steps = await self._selections.select(keys, made, b"".join(references))
        return pb.SelectSamplesResponse(total_samples=total, steps_per_pass=steps)
