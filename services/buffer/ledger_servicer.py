"""The gRPC face of the ledger's other half: prompt groups, checkpoints, inspection, small state."""

import grpc

from baton.api.buffer.v1 import ledger_pb2 as pb
from baton.api.buffer.v1.ledger_pb2_grpc import LedgerServiceServicer
from services.buffer.audit import Audit
from services.buffer.checkpoints import Checkpoints
from services.buffer.groups import Groups
from services.buffer.inspection import Inspection, State
from services.buffer.keys import EpisodeKeys, RunKeys
from services.buffer.rollback import RollBack
from services.buffer.state import RunState

SENTENCES = 1000


class LedgerServicer(LedgerServiceServicer):
    """Implements LedgerService; the errors are those of the domain calls."""

    def __init__(
        self, groups: Groups, checkpoints: Checkpoints, rollback: RollBack, inspection: Inspection, audit: Audit,
        state: RunState,
    ) -> None:  # fmt: skip
        self._groups = groups
        self._checkpoints = checkpoints
        self._rollback = rollback
        self._inspection = inspection
        self._audit = audit
        self._state = state

    async def IssueGroups(self, request: pb.IssueGroupsRequest, context: grpc.aio.ServicerContext) -> pb.IssueGroupsResponse:
        keys = EpisodeKeys(request.run_id, request.episode_id)
        issued = await self._groups.issue(keys, request.group_ids, request.producer, request.timeout_s)
        return pb.IssueGroupsResponse(
            granted=issued.granted,
            stored=issued.stored,
            held=issued.held,
            dead=issued.dead.keys(),
            reasons=issued.dead.values(),
        )

    async def ReportGroups(
        self, request: pb.ReportGroupsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ReportGroupsResponse:
        keys = EpisodeKeys(request.run_id, request.episode_id)
        await self._groups.report(keys, request.group_ids, request.producer, request.failure)
        return pb.ReportGroupsResponse()

    async def ConfirmTrained(
        self, request: pb.ConfirmTrainedRequest, context: grpc.aio.ServicerContext
    ) -> pb.ConfirmTrainedResponse:
        return pb.ConfirmTrainedResponse(steps=await self._checkpoints.confirm(RunKeys(request.run_id), request.global_step))

    async def RewindTrained(
        self, request: pb.RewindTrainedRequest, context: grpc.aio.ServicerContext
    ) -> pb.RewindTrainedResponse:
        return pb.RewindTrainedResponse(steps=await self._checkpoints.rewind(RunKeys(request.run_id), request.global_step))

    async def RollBack(self, request: pb.RollBackRequest, context: grpc.aio.ServicerContext) -> pb.RollBackResponse:
        run = RunKeys(request.run_id)
        return pb.RollBackResponse(steps=await self._rollback.before(run, request.episode_id, request.global_step))

    async def ListEpisodes(
        self, request: pb.ListEpisodesRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListEpisodesResponse:
        return pb.ListEpisodesResponse(episodes=map(_state, await self._inspection.episodes(request.run_id)))

    async def FindSample(self, request: pb.FindSampleRequest, context: grpc.aio.ServicerContext) -> pb.FindSampleResponse:
        found = await self._inspection.find(RunKeys(request.run_id), request.sample_id)
        return pb.FindSampleResponse(
            episode_id=found.keys.episode_id,
            position=found.position,
            samples=found.sample.to_proto(),
            steps=found.steps,
            made=found.made,
        )

    async def Audit(self, request: pb.AuditRequest, context: grpc.aio.ServicerContext) -> pb.AuditResponse:
        report = await self._audit.run(RunKeys(request.run_id))
        return pb.AuditResponse(
            faults=_at_most(report.faults, "faults"),
            episodes=map(_state, report.states),
            ended_episodes=report.ended_episodes,
            ended_samples=report.ended_samples,
            optimizer_steps=report.optimizer_steps,
            dead=_at_most(report.dead, "of these"),
            untrained=_at_most(report.untrained, "passes"),
        )

    async def PutState(self, request: pb.PutStateRequest, context: grpc.aio.ServicerContext) -> pb.PutStateResponse:
        revision = await self._state.put(request.run_id, request.name, request.value, request.expected_revision)
        return pb.PutStateResponse(revision=revision)

    async def GetState(self, request: pb.GetStateRequest, context: grpc.aio.ServicerContext) -> pb.GetStateResponse:
        value, revision = await self._state.get(request.run_id, request.name)
        return pb.GetStateResponse(value=value, revision=revision)


def _at_most(sentences: list[str], what: str) -> list[str]:
    """As many as surely fit one message."""
    more = len(sentences) - SENTENCES
    return sentences if more <= 0 else [*sentences[:SENTENCES], f"and {more} more {what}"]


def _state(state: State) -> pb.EpisodeState:
    episode = state.episode
    return pb.EpisodeState(
        run_id=state.keys.run_id,
        episode_id=state.keys.episode_id,
        issued_groups=state.groups("issued", "generated"),
        generated_groups=state.groups("generated"),
        failed_groups=state.groups("failed"),
        stored_samples=episode.stored,
        stored_bytes=episode.bytes,
        training_samples=episode.total or 0,
        leased_samples=state.samples("leased"),
        trained_samples=state.samples("trained"),
        acked_samples=state.samples("acked"),
        current_pass=episode.current_pass,
        closed=episode.closed,
        relayed=episode.relayed,
        ended=episode.ended,
    )
