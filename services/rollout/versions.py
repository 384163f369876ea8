"""Which policy version a replica serves, and whether a request may have it."""

import time
from dataclasses import dataclass

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.errors import DigestMismatchError, NotReadyError, StalePolicyError


@dataclass(slots=True)
class VersionGate:
    """HEALTHY -> UPDATING (begin) -> HEALTHY (commit), or -> STALE (fail) until a whole update is committed.

    An update that is staged leaves it HEALTHY until all is there: -> UPDATING (pause), to copy it -> HEALTHY (commit).
    HEALTHY -> PAUSED or ASLEEP (close) -> HEALTHY (open), in which none begins, and what arrives meanwhile is not committed.
    """

    version: int = 0
    digest: str = ""
    state: int = pb.REPLICA_STATE_HEALTHY
    reason: str = ""
    _pending: tuple[int, str] | None = None
    _coming: bool = False  # while the engine serves
    _paused_at: float = 0.0

    def admit(self, exact: int | None, minimum: int | None) -> None:
        """Raises NotReadyError while nothing is served, StalePolicyError if another version is asked for."""
        if self.state != pb.REPLICA_STATE_HEALTHY:
            raise NotReadyError(f"this replica serves nothing now: {self.reason}")
        if exact is not None and exact != self.version:
            raise StalePolicyError(f"version {exact} was asked for, but this replica serves version {self.version}")
        if minimum is not None and self.version < minimum:
            raise StalePolicyError(f"version {minimum} or newer was asked for, but this replica serves {self.version}")

    def begin(self, version: int, *, serving: bool = False) -> None:
        """An update to `version` starts; nothing is served from now on, unless the engine goes on `serving` what it has. The
        one that is served may come again, for a caller that had no answer to its commit. Raises NotReadyError for an older
        one, while one arrives, and while the gate is closed."""
        if self.closed or self._arriving:
            raise NotReadyError(f"no weights can be taken: {self.reason}")
        if version < self.version:
            raise NotReadyError(f"version {version} cannot follow version {self.version}, which is served already")
        self._coming = serving and self.state == pb.REPLICA_STATE_HEALTHY
        if not self._coming:
            self.state = pb.REPLICA_STATE_UPDATING
        self.reason = f"version {version} is arriving"
        self._pending, self._paused_at = None, time.perf_counter()

    def pause(self, version: int, digest: str) -> None:
        """What has arrived is copied into the engine; nothing is served from now on. Raises as `check`."""
        if self.check(version, digest):
            self.state, self._coming = pb.REPLICA_STATE_UPDATING, False
            self.reason, self._paused_at = f"version {version} is loaded", time.perf_counter()

    @property
    def _arriving(self) -> bool:
        """Whether an update is under way. One that has arrived, or failed, may be replaced: its sender may be gone."""
        return (self._coming or self.state == pb.REPLICA_STATE_UPDATING) and self._pending is None

    @property
    def closed(self) -> bool:
        """Whether it was paused or put to sleep."""
        return self.state in (pb.REPLICA_STATE_PAUSED, pb.REPLICA_STATE_ASLEEP)

    def close(self, state: int, reason: str) -> None:
        """PAUSED or ASLEEP; from either or from HEALTHY, or NotReadyError is raised. What arrives is loaded into memory that
        a sleep gives away: that waits for it."""
        if state == pb.REPLICA_STATE_ASLEEP and self._arriving:
            raise NotReadyError(f"this replica cannot sleep yet: {self.reason}; ask again when it has arrived")
        if self.state != pb.REPLICA_STATE_HEALTHY and not self.closed:
            raise NotReadyError(f"this replica serves nothing already: {self.reason}")
        self.state, self.reason = state, reason

    def open(self) -> None:
        """HEALTHY again, if it was closed."""
        if self.closed:
            self.state, self.reason = pb.REPLICA_STATE_HEALTHY, ""

    def drop(self, reason: str) -> None:
        """There are no weights any more, of whatever version: STALE until a whole update, which may be of the same one."""
        self.version, self.digest, self._pending, self._coming = 0, "", None, False
        self.state, self.reason = pb.REPLICA_STATE_STALE, reason

    def arrived(self, version: int, digest: str) -> None:
        """All of `version` is in the engine; it waits for its commit. Raises DigestMismatchError if it was served before,
        as other weights."""
        if version == self.version and digest != self.digest:
            self.fail(version, f"it was served as weights {self.digest}, and weights {digest} arrived")
            raise DigestMismatchError(self.reason)
        self._pending = (version, digest)
        if not self.closed:
            self.reason = f"version {version} has arrived and waits for its commit"

    def lay_base(self, version: int) -> None:
        """The weights that adapters are for have arrived: STALE until an adapter is committed."""
        self.state, self._pending, self._coming = pb.REPLICA_STATE_STALE, None, False
        self.reason = f"the base of version {version} has arrived, and its adapter is to come"

    def fail(self, version: int, cause: str) -> None:
        """The update broke off. The engine may hold a mixture, which nothing may commit, unless it went on serving."""
        if not self._coming:
            self.state = pb.REPLICA_STATE_STALE
        self._pending, self._coming = None, False
        self.reason = f"the update to version {version} failed: {cause}"

    def commit(self, version: int, digest: str) -> float:
        """Serves `version`. Returns the seconds without service. Idempotent. Raises as `check`."""
        if not self.check(version, digest):
            return 0.0
        self.version, self.digest = version, digest
        self.state, self.reason, self._pending, self._coming = pb.REPLICA_STATE_HEALTHY, "", None, False
        return time.perf_counter() - self._paused_at

    def check(self, version: int, digest: str) -> bool:
        """Whether a commit of `version` has anything to do.

        Raises NotReadyError if `version` has not arrived, or the gate was closed meanwhile, DigestMismatchError if it did
        arrive, with another digest.
        """
        updating = self.state in (pb.REPLICA_STATE_UPDATING, pb.REPLICA_STATE_STALE)
        if not updating and (version, digest) == (self.version, self.digest):
            return False
        if self.closed:
            raise NotReadyError(f"version {version} cannot be committed: {self.reason}")
        if self._pending is None or self._pending[0] != version:
            raise NotReadyError(
                f"version {version} cannot be committed: it has not arrived here ({self.reason or 'no update began'})"
            )
        if (arrived := self._pending[1]) != digest:
            self.fail(version, "its digest is not the sender's")
            raise DigestMismatchError(f"version {version} arrived with digest {arrived}, the sender's is {digest}")
        return True
