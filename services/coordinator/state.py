"""RunState, the one mutable record of a run, and where it is kept: the buffer service's state store, as JSON."""

import json
import time
from dataclasses import asdict, dataclass, field, fields

from baton.clients import LedgerClient
from baton.errors import ConflictError, NotFoundError, RunFailedError
from baton.run_life import STATE_NAME, Life

KEPT_DIGESTS = 4096
"""Newest versions whose digests are kept, whatever the history shows."""
MOST_DIGESTS = 13_000
"""More would outgrow the store's 1 MiB per value."""


@dataclass(slots=True)
class RunState:
    """How far the run is. Only the driver writes to it."""

    run_id: str
    num_episodes: int
    output_dir: str
    dashboard_url: str = ""
    life: Life = Life.STARTING
    episode: int = 0
    """0-based episode in progress, or the number of episodes once they are done."""
    phase: str = ""
    """"prompts", "generate", "read", "reward", "put", "relay", "train", "publish", "commit", "checkpoint", "evaluate"; empty
    between episodes."""
    waiting_for: str = ""
    """The service and address that the phase waits for."""
    policy_version: int = 0
    """Newest committed weights."""
    weights_digest: str = ""
    digests: dict[int, str] = field(default_factory=lambda: {0: ""})
    """Digest of every version that replicas may have sampled from; version 0, a replica's own checkpoint, has none."""
    history_version: int | None = None
    """Oldest published version whose samples the relay function was shown last; None: none."""
    global_step: int = 0
    prompts_consumed: int = 0
    checkpoint: str = ""
    """Directory of the newest checkpoint."""
    error: str = ""
    started_at: float = field(default_factory=time.time)
    """Seconds since 1970, as is `ended_at`; 0: not yet."""
    ended_at: float = 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began, or that it took."""
        return (self.ended_at or time.time()) - self.started_at

    def published(self, version: int, digest: str) -> None:
        """Takes note of a committed version. Raises RunFailedError if the history shows more versions than can be kept."""
        self.policy_version, self.weights_digest = version, digest
        self.digests[version] = digest
        shown = version if self.history_version is None else self.history_version
        for old in sorted(self.digests)[:-KEPT_DIGESTS]:
            if 0 < old < shown:
                del self.digests[old]
        if len(self.digests) > MOST_DIGESTS + 1:
            raise RunFailedError(
                f"the relay history shows samples of policy version {shown}, and digests of {MOST_DIGESTS} versions can be "
                "kept; lower runtime.max_relay_episode, or lower store.relay_max_bytes and set store.relay_when_full: evict"
            )

    def to_json(self) -> bytes:
        """All fields."""
        return json.dumps(asdict(self), allow_nan=False).encode()

    @classmethod
    def from_json(cls, value: bytes) -> "RunState":
        """What `to_json` wrote."""
        known = json.loads(value)
        known["digests"] = {int(version): digest for version, digest in known["digests"].items()}
        known["life"] = Life(known["life"])
        return cls(**{f.name: known[f.name] for f in fields(cls)})


class StateStore:
    """Keeps one run's state; a second coordinator that drives the same run is refused."""

    def __init__(self, ledger: LedgerClient, run_id: str) -> None:
        self._ledger = ledger
        self._run_id = run_id
        self._revision = 0

    @property
    def is_ours(self) -> bool:
        """Whether the state was claimed, or taken over."""
        return self._revision > 0

    async def claim(self, state: RunState) -> None:
        """Stores the first state. Raises ConflictError if the store has a run of this name.

        May be asked for again if the answer was lost: to the store the same bytes are the same write, and those of another
        coordinator differ, in `started_at` and in the address of its dashboard.
        """
        try:
            await self.save(state)
        except ConflictError:
            value, _ = await self._ledger.get_state(self._run_id, STATE_NAME)
            other = RunState.from_json(value)
            raise ConflictError(
                f"run {self._run_id!r} exists already ({other.life}, episode {other.episode} of {other.num_episodes}, files "
                f"in {other.output_dir}); resume it, or start under another run id"
            ) from None

    async def take_over(self) -> None:
        """Makes the next `save` this coordinator's; one that still drives the run fails at its own next one.

        Raises NotFoundError if the store does not know the run.
        """
        self._revision = await self.stored_revision()

    async def stored_revision(self) -> int:
        """How often the state was stored. Raises NotFoundError if the store does not know the run."""
        _, revision = await self._ledger.get_state(self._run_id, STATE_NAME)
        if not revision:
            raise NotFoundError(
                f"the store knows no run {self._run_id!r}, so its samples are gone, and it cannot go on; is store.url the "
                "one that it had, and are the files of its store (store.data_dir) where they were?"
            )
        return revision

    async def save(self, state: RunState) -> None:
        """Stores the state. Raises ConflictError if somebody else did since the last time."""
        self._revision = await self._ledger.put_state(
            self._run_id, STATE_NAME, state.to_json(), expected_revision=self._revision
        )
