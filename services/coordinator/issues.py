"""An episode's prompts in the ledger: issued -> generated -> put, and issued again when their rollout is lost."""

import uuid
from collections.abc import Collection, Sequence

from baton.errors import ConflictError, DeadLetterError
from services.coordinator.connections import Connections


class Issues:
    """What this coordinator has in its hands of one episode after the other."""

    def __init__(self, services: Connections, run_id: str, *, timeout_s: float) -> None:
        """`timeout_s`: how long the ledger waits for an issued prompt before it may be issued to somebody else."""
        self._services = services
        self._run_id = run_id
        self._timeout_s = timeout_s
        self._producer = f"coordinator-{uuid.uuid4().hex[:8]}"
        self._episode = -1
        self._held: set[str] = set()

    async def begin(self, episode: int, group_ids: Sequence[str]) -> None:
        """Takes the prompts of an episode. Raises ConflictError if somebody else has or stored one, DeadLetterError if one
        was given up."""
        self._episode, self._held = episode, set(group_ids)
        await self._issue(group_ids)

    async def generated(self, group_id: str) -> None:
        """Its responses exist. What a flow makes beside the episode's prompts is not in the ledger before it is put."""
        if group_id in self._held:
            await self._report([group_id])

    async def lost(self, group_ids: Collection[str], reason: str, *, again: bool) -> None:
        """Their rollout is lost; `again`: they are issued once more. Raises DeadLetterError if that was tried too often."""
        if held := sorted(self._held.intersection(group_ids)):
            await self._report(held, reason)
            if again:
                await self._issue(held)

    def put(self, group_id: str) -> None:
        """The buffer has it."""
        self._held.discard(group_id)

    async def end(self) -> None:
        """No more groups will come: the flow left out those that are still held."""
        if self._held:
            await self._report(sorted(self._held), "the flow yielded no group for this prompt")
        self._held.clear()

    async def _issue(self, group_ids: Sequence[str]) -> None:
        with self._services.at_buffer():
            issued = await self._services.ledger.issue_groups(
                self._run_id, self._episode, group_ids, producer=self._producer, timeout_s=self._timeout_s
            )
        for group_id, reason in issued.dead.items():
            raise DeadLetterError(
                f"prompt {group_id} of episode {self._episode} was given up after store.max_attempts attempts: {reason}"
            )
        if taken := {*issued.held, *issued.stored} & self._held:
            raise ConflictError(
                f"prompts {', '.join(sorted(taken))} of episode {self._episode} are another coordinator's; does a second "
                "one drive this run? Start it under another run id"
            )

    async def _report(self, group_ids: Sequence[str], failure: str = "") -> None:
        with self._services.at_buffer():
            await self._services.ledger.report_groups(
                self._run_id, self._episode, group_ids, producer=self._producer, failure=failure
            )
