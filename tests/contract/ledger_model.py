"""The ledger as it should be, in sixty lines: what it answers to put, close, lease and ack, or the error that it raises.

A crash is not in it: none, of the buffer or of the store, may change an answer. `whole_ledger_model` has all other calls.
"""

from dataclasses import dataclass, field

from baton.errors import (
    ConflictError,
    DeadLetterError,
    DeadlineError,
    InvalidRequestError,
    LeaseLostError,
    NotFoundError,
)  # fmt: skip

BATCH, MICRO, ATTEMPTS = 4, 2, 2


@dataclass
class Step:
    """A step that was leased. `lessee` None: it was given back; `global_step` not None: trained."""

    attempt: int = 0
    lessee: str | None = None
    expired: bool = False
    global_step: int | None = None
    limit: int = ATTEMPTS


@dataclass
class Episode:
    expected: int
    samples: list[str] = field(default_factory=list)
    requests: dict[str, int] = field(default_factory=dict)
    steps: dict[int, Step] = field(default_factory=dict)
    closed: bool = False

    @property
    def training(self) -> list[str]:
        """What can be trained so far."""
        return self.samples

    @property
    def total(self) -> int | None:
        """Of one pass; None: nobody can know yet."""
        return len(self.samples) if self.closed else self.expected or None

    def trained(self) -> int:
        return sum(step.global_step is not None for step in self.steps.values())


def steps_of(samples: int) -> int:
    return -(-samples // BATCH)


class Ledger:
    """A run. Every method returns the answer, or the class of the error."""

    new_step = Step

    def __init__(self) -> None:
        self.episodes: dict[int, Episode] = {}
        self.global_steps: dict[int, tuple[int, int]] = {}

    def put(self, at: int, samples: list[str], request: str):
        if (episode := self.episodes.get(at)) is None:
            return NotFoundError
        if request in episode.requests:
            return episode.requests[request]
        if 0 < episode.expected < len(episode.samples) + len(samples):
            return InvalidRequestError
        if episode.closed or set(samples) & set(episode.samples):
            return ConflictError
        episode.samples += samples
        episode.requests[request] = len(episode.samples)
        return len(episode.samples)

    def close(self, at: int):
        if (episode := self.episodes.get(at)) is None:
            return NotFoundError
        if len(episode.samples) < episode.expected:
            return InvalidRequestError
        episode.closed = True
        return len(episode.samples), steps_of(len(episode.samples))

    def lease(self, at: int, step: int, lessee: str):
        """The micro-batches that come before the error, if there is one, then it."""
        if (episode := self.episodes.get(at)) is None:
            return [NotFoundError]
        if episode.total is not None and step >= steps_of(episode.total):
            return [InvalidRequestError]
        answer: list = []
        for first in range(step * BATCH, (step + 1) * BATCH, MICRO):
            places = [place % (episode.total or place + 1) for place in range(first, first + MICRO)]
            if max(places) >= len(episode.training):
                return [*answer, DeadlineError]
            if not answer and (error := self.take(at, step, lessee)):
                return [error]
            attempt = episode.steps[step].attempt
            answer.append((f"p0-s{step}-a{attempt}", [episode.training[place] for place in places]))
        return answer

    def take(self, at: int, step: int, lessee: str):
        held = self.episodes[at].steps.setdefault(step, self.new_step())
        if held.global_step is not None:
            return ConflictError
        if held.lessee and not held.expired:
            return None if held.lessee == lessee else DeadlineError
        if held.attempt == held.limit:
            return DeadLetterError
        held.attempt, held.lessee, held.expired = held.attempt + 1, lessee, False
        return None

    def expire(self, at: int, step: int) -> bool:
        """Returns whether there is a lease that can."""
        held = self.episodes[at].steps.get(step) if at in self.episodes else None
        leased = bool(held and held.lessee and held.global_step is None)
        if leased:
            held.expired = True
        return leased

    def ack(self, at: int, step: int, attempt: int, global_step: int):
        held = self.episodes[at].steps.get(step) if at in self.episodes else None
        if held is None or (held.lessee is None and held.global_step is None):
            return NotFoundError
        if held.attempt != attempt or (held.expired and held.global_step is None):
            return LeaseLostError
        if held.global_step is not None:
            return self.episodes[at].trained() if held.global_step == global_step else ConflictError
        if global_step in self.global_steps:
            return ConflictError
        held.global_step = global_step
        self.global_steps[global_step] = at, step
        return self.episodes[at].trained()
