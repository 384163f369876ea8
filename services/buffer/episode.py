"""What the ledger knows of one episode."""

from dataclasses import dataclass
from typing import Self

from baton.errors import NotFoundError
from services.buffer.keys import EpisodeKeys
from services.buffer.store import Store


@dataclass(frozen=True, slots=True)
class Episode:
    """The counters of an episode: the fields of its hash, but for `columns`, `trained:PASS`,
    `attempt:STEP` and `rewinds:STEP`."""

    expected: int
    """Samples that a fixed episode will have; 0 for a dynamic one."""
    global_batch_size: int
    micro_batch_size: int
    passes: int
    """How often each sample is to be trained; 0: at least once."""
    unit: int
    """Consecutive samples that stay together, whatever orders and divides them."""
    relayed: bool
    """Trained on a selection from the history, which it becomes part of."""
    stored: int
    """Samples put so far, at positions 0 .. stored - 1."""
    bytes: int
    """What they take."""
    closed: bool
    """No more samples will come."""
    current_pass: int
    """The newest pass of which a step was leased."""
    selected: int
    """Samples of a relayed episode's training set; -1 while it is not chosen."""
    ended: bool
    """Wholly trained; only a relayed episode is still there then."""

    FIELDS = (
        "expected", "global_batch_size", "micro_batch_size", "passes", "unit", "relayed", "stored", "bytes", "closed",
        "pass", "selected", "ended",
    )  # fmt: skip

    @property
    def total(self) -> int | None:
        """Samples of a pass; None while nobody can know."""
        if self.relayed:
            return None if self.selected < 0 else self.selected
        return self.stored if self.closed else self.expected or None

    @property
    def available(self) -> int:
        """Training positions, from 0, whose samples can be read."""
        return max(self.selected, 0) if self.relayed else self.stored

    @classmethod
    async def read(cls, store: Store, keys: EpisodeKeys) -> Self:
        """Raises NotFoundError if it was not opened, or was deleted."""
        values = await store.call("HMGET", keys.episode, *cls.FIELDS)
        if values[0] is None:
            raise missing(keys)
        row = dict(zip(cls.FIELDS, map(int, values), strict=True))
        flags = {name: bool(row.pop(name)) for name in ("relayed", "closed", "ended")}
        return cls(current_pass=row.pop("pass"), **row, **flags)


def missing(keys: EpisodeKeys) -> NotFoundError:
    """The error for an episode that the store does not hold."""
    return NotFoundError(f"there is no {keys}: it was not opened, or was deleted; call OpenEpisode first")
