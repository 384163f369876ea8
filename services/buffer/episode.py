"""What the ledger knows of one episode."""

from dataclasses import dataclass
from typing import Self

from baton.errors import NotFoundError
from services.buffer.keys import EpisodeKeys
from services.buffer.store import Store


@dataclass(frozen=True, slots=True)
class Episode:
    """The counters of an episode: the fields of its hash, but for `columns` and the `acked:PASS` counters."""

    expected: int
    """Samples that a fixed episode will have; 0 for a dynamic one."""
    global_batch_size: int
    micro_batch_size: int
    stored: int
    """Samples put so far, at positions 0 .. stored - 1."""
    closed: bool
    """No more samples will come."""
    current_pass: int
    """The newest pass of which a step was leased."""

    @property
    def total(self) -> int | None:
        """Samples of a pass; None while nobody can know."""
        return self.stored if self.closed else self.expected or None

    @classmethod
    async def read(cls, store: Store, keys: EpisodeKeys) -> Self:
        """Raises NotFoundError if it was not opened, or was deleted."""
        names = ("expected", "global_batch_size", "micro_batch_size", "stored", "closed", "pass")
        values = await store.call("HMGET", keys.episode, *names)
        if values[0] is None:
            raise missing(keys)
        *sizes, closed, current_pass = map(int, values)
        return cls(*sizes, bool(closed), current_pass)


def missing(keys: EpisodeKeys) -> NotFoundError:
    """The error for an episode that the store does not hold."""
    return NotFoundError(f"there is no {keys}: it was not opened, or was deleted; call OpenEpisode first")
