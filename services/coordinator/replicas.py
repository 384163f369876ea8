"""What the coordinator knows of each rollout replica, and which one gets the next request.

    HEALTHY --a connection refused, a call broken off, no answer--> SUSPECT --proof, or SUSPECT_S--> DEAD
       ^  ^_________________________________________________________|                                 |
       |                                                                        it accepts connections v
       +-----the present version is committed----- STALE <-----it answers, of another version---- RESTARTING

Somebody may have taken a replica aside: it is PAUSED then, gets no weights either, and is HEALTHY or STALE afterwards.
A STALE one gets no weights while its engine hangs in an earlier update, and none at all if they are not of its model. One in
which something broke as it took them gets them alone, so that it cannot break off the others' update again.

Only HEALTHY replicas get requests. Nothing here waits or calls: the fleet looks, and tells what it saw.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

REFUSALS = 3
"""So many connections in a row must be refused; one alone may be a full backlog."""

SUSPECT_S = 60.0
"""How long a process may accept connections and answer nothing until it counts as dead."""


class ReplicaHealth(StrEnum):
    """Where a replica is in its life."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    DEAD = "dead"
    RESTARTING = "restarting"
    STALE = "stale"
    PAUSED = "paused"


@dataclass(slots=True, eq=False)
class Replica:
    """One replica's life. Each method tells what was seen of it; `on_change(replica, before)` hears of each new state."""

    address: str
    on_change: Callable[["Replica", ReplicaHealth], None] = lambda replica, before: None
    clock: Callable[[], float] = time.monotonic
    health: ReplicaHealth = ReplicaHealth.HEALTHY
    reason: str = ""
    """Why it is not HEALTHY; empty if it is."""
    version: int = 0
    """Policy version that it was last known to serve."""
    deaths: int = 0
    """How often its process was found to be gone, or to be another one."""
    outstanding: int = 0
    """Prompts sent to it and not yet answered."""
    unfit: str = ""
    """Why the run's weights are not for it: it has another model. Another process in its place may have the right one."""
    fault: str = ""
    """What broke in it while it took weights that came to others. It is sent none together with others, until it has taken
    some alone, or another process is in its place."""
    hangs: bool = False
    """Its engine has not come out of an update that was given up."""
    updating: bool = False
    """Weights are on their way to it: its own word on its version means nothing until they are committed."""
    _instance: str = field(default="", init=False)
    _refusals: int = field(default=0, init=False)
    _broken: bool = field(default=False, init=False)
    _since: float = field(default=0.0, init=False)

    def refused(self, cause: str) -> None:
        """Nobody listens at its address."""
        self._refusals += 1
        proven = self._broken or self._refusals >= REFUSALS
        if self.health is ReplicaHealth.RESTARTING or (self.health is ReplicaHealth.SUSPECT and proven):
            self._died(cause)
        elif self.health is not ReplicaHealth.DEAD:
            self._become(ReplicaHealth.SUSPECT, cause)

    def unreached(self, cause: str) -> None:
        """Nobody accepted a connection in time, nor refused it: the backlog of a process that starts may be full."""
        if self.health is not ReplicaHealth.RESTARTING:
            self.refused(cause)

    def broke(self, cause: str) -> None:
        """A call to it lost its connection: a connection that is refused now, or leads to no answer, is proof."""
        if self.health in (ReplicaHealth.HEALTHY, ReplicaHealth.STALE, ReplicaHealth.SUSPECT):
            self._broken = True
            self._become(ReplicaHealth.SUSPECT, cause)

    def silent(self, cause: str) -> None:
        """It accepts connections, but does not answer. If it broke them off or refused them before, another process starts
        in its place."""
        replaced = self._refusals > 0 or self._broken
        if self.health is ReplicaHealth.SUSPECT and (replaced or self.clock() - self._since >= SUSPECT_S):
            self._died(cause)
        elif self.health is ReplicaHealth.DEAD:
            self._become(ReplicaHealth.RESTARTING, cause)
        elif self.health is not ReplicaHealth.RESTARTING:
            self._become(ReplicaHealth.SUSPECT, cause)

    @property
    def takes_weights(self) -> bool:
        """Whether an update may reach it now."""
        return self.health in (ReplicaHealth.HEALTHY, ReplicaHealth.STALE) and not self.unfit and not self.hangs

    def is_unfit(self, why: str) -> None:
        """The trainer refuses to send it weights."""
        self.unfit = why
        self._become(ReplicaHealth.STALE, why)

    def is_process(self, instance: str, *, hangs: bool) -> None:
        """The process that answers, and whether it can begin an update."""
        if instance != self._instance:
            self._instance, self.unfit, self.fault = instance, "", ""
        self.hangs = hangs

    def answered(self, version: int, serving: bool, wanted: int, why: str = "") -> None:
        """It serves `version`, or if not `serving` nothing, for the reason `why`; the run wants `wanted`."""
        self._refusals, self._broken = 0, False
        if self.updating and self.health is not ReplicaHealth.SUSPECT:
            return
        if self.unfit:
            self.version = version
            self._become(ReplicaHealth.STALE, self.unfit)
            return
        if serving and version == wanted:
            self.serves(version)
            return
        if self.health in (ReplicaHealth.HEALTHY, ReplicaHealth.SUSPECT) and version < self.version:
            self._died("another process answers in its place")
        if self.health is not ReplicaHealth.STALE:
            self.version = version
            self._become(ReplicaHealth.STALE, why or f"has version {version}, not {wanted}")

    def paused(self, why: str) -> None:
        """It answers that somebody paused it, or put it to sleep."""
        self._refusals, self._broken = 0, False
        self._become(ReplicaHealth.PAUSED, why)

    def serves(self, version: int) -> None:
        """The present version is committed to it."""
        self.version, self.fault = version, ""
        self._become(ReplicaHealth.HEALTHY, "")

    def _died(self, cause: str) -> None:
        self.deaths += 1
        self._refusals, self._broken = 0, False
        self._become(ReplicaHealth.DEAD, cause)

    def _become(self, health: ReplicaHealth, reason: str) -> None:
        before, self.health, self.reason = self.health, health, reason
        if health is not before:
            self._since = self.clock()
            self.on_change(self, before)


def least_outstanding(replicas: Iterable[Replica], home: str | None = None) -> Replica | None:
    """The replica at `home` if it is HEALTHY, else of those that are the one with the fewest prompts; None without any."""
    healthy = [replica for replica in replicas if replica.health is ReplicaHealth.HEALTHY]
    at_home = next((replica for replica in healthy if replica.address == home), None)
    return at_home or min(healthy, key=lambda replica: replica.outstanding, default=None)
