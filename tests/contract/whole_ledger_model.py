"""The whole ledger as it should be: `ledger_model`, and prompt groups, relay, leases given back, checkpoints and the end."""

from dataclasses import dataclass, field

import ledger_model
from ledger_model import ATTEMPTS, BATCH, Ledger, steps_of

from baton.clients.buffer import EpisodeCounts
from baton.errors import (
    ConflictError,
    DeadLetterError,
    InvalidRequestError,
    LeaseLostError,
    NotFoundError,
    NotReadyError,
)  # fmt: skip

GROUP, GROUPS = 2, 4


@dataclass
class Step(ledger_model.Step):
    """Trained for good if `acked`; `rewound`: trained by a step that the trainer went back behind."""

    acked: bool = False
    rewound: bool = False


@dataclass
class Issue:
    """A prompt group that a producer has, or that it could not make."""

    attempt: int
    producer: str
    expired: bool = False
    failed: bool = False


@dataclass
class Episode(ledger_model.Episode):
    relayed: bool = False
    groups: list[int] = field(default_factory=list)
    issues: dict[int, Issue] = field(default_factory=dict)
    chosen: list[str] | None = None
    ended: bool = False

    @property
    def training(self) -> list[str]:
        return (self.chosen or []) if self.relayed else self.samples

    @property
    def total(self) -> int | None:
        if self.relayed:
            return None if self.chosen is None else len(self.chosen)
        return super().total

    def acked(self) -> int:
        return sum(step.acked for step in self.steps.values())


class Model(Ledger):
    """A run. Every method returns the answer, or the class of the error."""

    new_step = Step

    def __init__(self, ack_on_step: bool) -> None:
        super().__init__()
        self.ack_on_step = ack_on_step
        self.ended: dict[int, int] = {}
        self.lost: dict[int, int] = {}
        self.left_out: dict[int, int] = {}
        self.dead: set[str] = set()

    def is_ready(self, at: int) -> bool:
        """Whether it is known what the episode trains."""
        return at in self.episodes and self.episodes[at].closed and self.episodes[at].total is not None

    def open(self, at: int, expected: int, relayed: bool):
        if at in self.ended:
            return ConflictError
        episode = self.episodes.setdefault(at, Episode(expected, relayed=relayed))
        return len(episode.samples) if episode.expected == expected else ConflictError

    def issue(self, at: int, groups: list[int], producer: str):
        if (episode := self.episodes.get(at)) is None:
            return NotFoundError
        return ConflictError if episode.closed else {group: self._issue(at, episode, group, producer) for group in groups}

    def _issue(self, at: int, episode: Episode, group: int, producer: str) -> str:
        if group in episode.groups:
            return "stored"
        attempt = 1
        if issue := episode.issues.get(group):
            if not issue.failed and not issue.expired:
                return "granted" if issue.producer == producer else "held"
            attempt = issue.attempt + 1
        if attempt > ATTEMPTS:
            issue.failed = True
            self.dead.add(f"episode {at} group g{group}")
            return "dead"
        episode.issues[group] = Issue(attempt, producer)
        return "granted"

    def generated(self, at: int, group: int, producer: str):
        """What an issued group is then called changes no answer."""

    def fail(self, at: int, group: int, producer: str):
        issue = self.episodes[at].issues.get(group) if at in self.episodes else None
        if issue and issue.producer == producer:
            issue.failed = True

    def put_group(self, at: int, group: int, samples: list[str], request: str):
        episode = self.episodes.get(at)
        known = episode is None or request in episode.requests
        answer = self.put(at, samples, request)
        if not known and isinstance(answer, int):
            episode.groups.append(group)
            episode.issues.pop(group, None)
            self.dead.discard(f"episode {at} group g{group}")
        return answer

    def select(self, at: int, references: list[tuple[int, int]], made: list[str]):
        """A reference to episode -1 is to one of `made`."""
        if (episode := self.episodes.get(at)) is None:
            return NotFoundError
        if not episode.relayed:
            return InvalidRequestError
        if not episode.closed:
            return NotReadyError
        known = {-1: made} | {other: self.episodes[other].samples for other in self.episodes}
        if episode.chosen is None:
            if any(position >= len(known.get(other, [])) for other, position in references):
                return NotFoundError
            episode.chosen = [known[other][position] for other, position in references]
            episode.references = references
        elif len(references) != len(episode.chosen) or not (episode.ended or references == episode.references):
            return ConflictError
        return len(references), steps_of(len(references))

    def take(self, at: int, step: int, lessee: str):
        if self.episodes[at].ended:
            return ConflictError
        answer = super().take(at, step, lessee)
        if answer is DeadLetterError:
            self.dead.add(f"episode {at} step p0-s{step}")
        elif answer is None:
            self.episodes[at].steps[step].rewound = False
        return answer

    def _held(self, at: int, step: int, attempt: int):
        """The step if it is leased by this attempt, or the error."""
        held = self.episodes[at].steps.get(step) if at in self.episodes else None
        if held is None or held.rewound:
            return NotFoundError
        return LeaseLostError if held.global_step is not None or held.attempt != attempt else held

    def release(self, at: int, step: int, attempt: int):
        if not isinstance(held := self._held(at, step, attempt), Step):
            return held
        held.lessee = None
        return None

    def renew(self, at: int, step: int, attempt: int, lessee: str):
        held = self.episodes[at].steps.get(step) if at in self.episodes else None
        if held and held.global_step is None:
            if held.lessee is None:
                return NotFoundError
            if held.lessee == lessee:  # maybe a rank of it was slow
                attempt = max(attempt, held.attempt)
        if not isinstance(held := self._held(at, step, attempt), Step):
            return held
        if held.lessee != lessee:
            return LeaseLostError
        held.expired = False
        return f"p0-s{step}-a{attempt}"

    def ack(self, at: int, step: int, attempt: int, global_step: int):
        is_new = global_step not in self.global_steps
        answer = super().ack(at, step, attempt, global_step)
        if is_new and isinstance(answer, int):
            self.episodes[at].steps[step].acked = self.ack_on_step
            self.dead.discard(f"episode {at} step p0-s{step}")
        return answer

    def confirm(self, global_step: int) -> int:
        trained = [step for episode in self.episodes.values() for step in episode.steps.values()]
        held = [step for step in trained if step.global_step is not None and step.global_step <= global_step]
        changed = [step for step in held if not step.acked]
        for step in changed:
            step.acked = True
        return len(changed)

    def rewind(self, global_step: int):
        """The caller sees to it that no acknowledged step is later."""
        undone = 0
        for episode in self.episodes.values():
            for step in episode.steps.values():
                if step.global_step is not None and step.global_step > global_step:
                    del self.global_steps[step.global_step]
                    step.global_step, step.lessee, step.rewound, step.expired = None, None, True, False
                    step.limit += 1  # nothing went wrong with it
                    undone += 1
        return undone

    def newest_acked(self) -> int:
        """The newest optimizer step that is acknowledged; -1: none."""
        live = {held.global_step for e in self.episodes.values() for held in e.steps.values() if not held.acked}
        return max((number for number in self.global_steps if number not in live), default=-1)

    def end(self, at: int):
        if (episode := self.episodes.get(at)) is None or episode.ended:
            return 0
        stays = episode.relayed and bool(episode.samples)
        training = episode.chosen if stays else episode.samples
        if training != [] and (not episode.closed or training is None or episode.acked() < steps_of(len(training))):
            return NotReadyError
        if episode.closed:
            self.ended[at], self.lost[at] = len(training), len(self.never_put(episode))
            self.left_out[at] = len(episode.issues) - self.lost[at]
        if stays:
            episode.ended, episode.steps, episode.issues, episode.requests = True, {}, {}, {}
        else:
            del self.episodes[at]
        return len(episode.samples)

    def never_put(self, episode: Episode) -> list[int]:
        return [group for group, issue in episode.issues.items() if not issue.failed] if episode.closed else []

    def untrained(self) -> set[str]:
        live = {at: e for at, e in self.episodes.items() if not e.ended}
        closed = {at: len(e.samples) if e.total is None else e.total for at, e in live.items() if e.closed}
        untrained = {f"pass 0 of episode {at}" for at, total in closed.items() if live[at].trained() < steps_of(total)}
        return untrained | {f"episode {at}" for at in live.keys() - closed.keys()}

    def faults(self) -> int:  # one for each group of an episode, or for all of an ended one
        return sum(len(self.never_put(e)) for e in self.episodes.values()) + sum(map(bool, self.lost.values()))

    def failed(self) -> set[str]:
        """Groups that a closed episode lacks, and why is known; of an ended one, how many these are."""
        closed = {at: e.issues.items() for at, e in self.episodes.items() if e.closed}
        left_out = {f"{count} prompt groups of episode {at} gave no samples" for at, count in self.left_out.items() if count}
        return left_out | {f"episode {at} group g{group}" for at in closed for group, issue in closed[at] if issue.failed}

    def counts(self, at: int):
        if (episode := self.episodes.get(at)) is None:
            return NotFoundError
        uses = {step: len(episode.training[step * BATCH : (step + 1) * BATCH]) for step in episode.steps}
        trained = {step for step, held in episode.steps.items() if held.global_step is not None}
        leased = {step for step, held in episode.steps.items() if held.lessee} - trained
        return EpisodeCounts(
            len(episode.samples), sum(uses[step] for step in leased), sum(uses[step] for step in trained), episode.closed,
            [f"g{group}" for group in episode.groups],
        )  # fmt: skip
