"""Client of the ledger: prompt groups, checkpoints, inspection, and small run state."""

from collections.abc import Sequence
from dataclasses import dataclass

from baton.api.buffer.v1 import ledger_pb2 as pb
from baton.api.buffer.v1.ledger_pb2_grpc import LedgerServiceStub
from baton.channel import ServiceClient
from baton.samples import Samples


@dataclass(frozen=True, slots=True)
class IssuedGroups:
    """Group ids by what becomes of them; `dead` gives the reasons."""

    granted: list[str]
    stored: list[str]
    held: list[str]
    dead: dict[str, str]


@dataclass(frozen=True, slots=True)
class FoundSample:
    """One sample, where it is, and what its steps are."""

    episode_id: int
    position: int
    samples: Samples
    steps: list[str]
    made: bool
    """A relay function made it; `position` is its place among those."""


class LedgerClient(ServiceClient):
    """Asks and tells the ledger. Errors: see `baton.errors`."""

    SERVICE = "baton.api.buffer.v1.LedgerService"
    STUB = LedgerServiceStub
    RETRIED = (
        "IssueGroups", "ReportGroups", "ConfirmTrained", "RewindTrained", "RollBack", "ListEpisodes", "FindSample", "Audit",
        "PutState", "GetState",
    )  # fmt: skip

    async def issue_groups(
        self, run_id: str, episode_id: int, group_ids: Sequence[str], *, producer: str, timeout_s: float
    ) -> IssuedGroups:
        """Asks for prompt groups to roll out; a granted one is the producer's until it is stored, or `timeout_s` is over."""
        request = pb.IssueGroupsRequest(
            run_id=run_id, episode_id=episode_id, group_ids=group_ids, producer=producer, timeout_s=timeout_s
        )
        answer = await self._call("IssueGroups", request)
        dead = dict(zip(answer.dead, answer.reasons, strict=True))
        return IssuedGroups(list(answer.granted), list(answer.stored), list(answer.held), dead)

    async def report_groups(
        self, run_id: str, episode_id: int, group_ids: Sequence[str], *, producer: str, failure: str = ""
    ) -> None:
        """Tells that groups are generated, or with a `failure` why they could not be made."""
        request = pb.ReportGroupsRequest(
            run_id=run_id, episode_id=episode_id, group_ids=group_ids, producer=producer, failure=failure
        )
        await self._call("ReportGroups", request)

    async def confirm_trained(self, run_id: str, global_step: int) -> int:
        """A checkpoint holds the optimizer steps up to this one. Returns the steps that are acknowledged by that."""
        request = pb.ConfirmTrainedRequest(run_id=run_id, global_step=global_step)
        return (await self._call("ConfirmTrained", request)).steps

    async def rewind_trained(self, run_id: str, global_step: int) -> int:
        """The trainer is back at a checkpoint of this optimizer step. Returns the steps that are to be trained again."""
        request = pb.RewindTrainedRequest(run_id=run_id, global_step=global_step)
        return (await self._call("RewindTrained", request)).steps

    async def roll_back(self, run_id: str, episode_id: int, global_step: int) -> int:
        """The run is back at a checkpoint of this optimizer step, before this episode: forgets all that came after it.
        Returns how many optimizer steps that were."""
        request = pb.RollBackRequest(run_id=run_id, episode_id=episode_id, global_step=global_step)
        return (await self._call("RollBack", request)).steps

    async def list_episodes(self, run_id: str = "") -> list[pb.EpisodeState]:
        """The run's episodes in the store, oldest first; without a run the newest of each."""
        return list((await self._call("ListEpisodes", pb.ListEpisodesRequest(run_id=run_id))).episodes)

    async def find_sample(self, run_id: str, sample_id: str) -> FoundSample:
        """One sample by its id. Raises NotFoundError if the store does not hold it."""
        answer = await self._call("FindSample", pb.FindSampleRequest(run_id=run_id, sample_id=sample_id))
        return FoundSample(
            answer.episode_id, answer.position, Samples.from_proto(answer.samples), list(answer.steps), answer.made
        )  # fmt: skip

    async def audit(self, run_id: str, *, timeout_s: float | None = None) -> pb.AuditResponse:
        """Proves from the store alone that nothing is lost or trained twice; `faults` is empty then."""
        return await self._call("Audit", pb.AuditRequest(run_id=run_id), timeout_s)

    async def put_state(self, run_id: str, name: str, value: bytes, *, expected_revision: int) -> int:
        """Stores a small value if nobody else did since `expected_revision`. Returns the new revision."""
        request = pb.PutStateRequest(run_id=run_id, name=name, value=value, expected_revision=expected_revision)
        return (await self._call("PutState", request)).revision

    async def get_state(self, run_id: str, name: str) -> tuple[bytes, int]:
        """Returns (value, revision); (b"", 0) if it was never put."""
        answer = await self._call("GetState", pb.GetStateRequest(run_id=run_id, name=name))
        return answer.value, answer.revision
