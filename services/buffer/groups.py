"""Prompt groups before their samples are stored: who rolls out which, for how long, and how often it was tried."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from baton.errors import ConflictError, InvalidRequestError
from services.buffer.episode import missing
from services.buffer.keys import EpisodeKeys
from services.buffer.limits import Limits
from services.buffer.store import Store

GROUPS_PER_CALL = 1000


@dataclass(frozen=True, slots=True)
class Issued:
    """Group ids by what becomes of them; `dead` gives the reasons."""

    granted: list[str] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    dead: dict[str, str] = field(default_factory=dict)


class Groups:
    """Issues prompt groups to producers. State is in the store only; a Put of the group ends its issue."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits

    async def issue(self, keys: EpisodeKeys, group_ids: Sequence[str], producer: str, timeout_s: float) -> Issued:
        """Grants the groups that are neither stored, nor held by another producer, nor given up.

        Raises NotFoundError if the episode was not opened, ConflictError if it is closed.
        """
        if not producer:
            raise InvalidRequestError("producer is empty; give every producer a name of its own, another at each start")
        if not (math.isfinite(timeout_s) and timeout_s > 0):
            raise InvalidRequestError(f"timeout_s is {timeout_s}; it must be a number of seconds above 0")
        issued = Issued()
        for at in range(0, len(group_ids), GROUPS_PER_CALL):
            some = group_ids[at : at + GROUPS_PER_CALL]
            answer = await self._store.run(
                "issue", [keys.episode, keys.groups, keys.issues, keys.run.dead],
                keys.episode_id, producer, timeout_s, self._limits.max_attempts, *some,
            )  # fmt: skip
            if answer == [b"missing"]:
                raise missing(keys)
            if answer == [b"closed"]:
                raise ConflictError(f"{keys} is closed; there is nothing to roll out for it any more")
            for group, word in zip(some, answer, strict=True):
                state, _, reason = word.decode().partition(" ")
                if state == "dead":
                    issued.dead[group] = reason
                else:
                    getattr(issued, state).append(group)
        return issued

    async def report(self, keys: EpisodeKeys, group_ids: Sequence[str], producer: str, failure: str) -> None:
        """Notes that groups are generated, or with a `failure` that they could not be made; others' stay as they are."""
        stage = "failed" if failure else "generated"
        for at in range(0, len(group_ids), GROUPS_PER_CALL):
            some = group_ids[at : at + GROUPS_PER_CALL]
            await self._store.run("report", [keys.issues], producer, stage, failure, *some)
