"""What agents sampled through the OpenAI-compatible server: kept by group until it is forgotten, within a limit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from baton.errors import BackpressureError
from baton.samples import Samples


@dataclass(frozen=True, slots=True)
class Answered:
    """One request's responses."""

    samples: Samples
    texts: list[str]

    @property
    def tokens(self) -> int:
        """Of prompts and responses."""
        return int(self.samples.prompt_ids.lengths.sum() + self.samples.response_ids.lengths.sum())


class Recordings:
    """Groups of answered requests. Nothing is dropped by itself: a full one refuses."""

    def __init__(self, max_tokens: int) -> None:
        """Keeps about so many tokens."""
        self.tokens = 0
        self._max_tokens = max_tokens
        self._groups: dict[str, list[Answered]] = {}
        self._numbers: dict[str, int] = {}  # of the next sample in each group; what was forgotten has had its own

    def check_room(self) -> None:
        """Raises BackpressureError if no further request may begin."""
        if self.tokens >= self._max_tokens:
            raise BackpressureError(
                f"{self.tokens} recorded tokens wait to be taken, and models.policy.max_recorded_tokens is "
                f"{self._max_tokens}; call ForgetRecorded for the responses that you have, or raise it"
            )

    def add(self, group_id: str, answered: Answered, *, alone: bool = False) -> None:
        """Numbers the samples on through the group; `alone`: nothing else will ever be in it."""
        first, count = self._numbers.get(group_id, 0), len(answered.samples)
        if not alone:
            self._numbers[group_id] = first + count
        ids = [f"{group_id}/{first + index}" for index in range(count)]
        named = replace(answered, samples=replace(answered.samples, sample_ids=ids))
        self._groups.setdefault(group_id, []).append(named)
        self.tokens += answered.tokens

    def listed(self, group_ids: Sequence[str], episode_id: int) -> Iterator[Answered]:
        """The responses of these groups, of all if none is named, as of that episode."""
        for group_id in group_ids or list(self._groups):
            for one in self._groups.get(group_id, ()):
                episode_ids = np.full(len(one.samples), episode_id, np.int64)
                yield replace(one, samples=replace(one.samples, episode_ids=episode_ids))

    def forget(self, sample_ids: Sequence[str]) -> int:
        """Drops the requests that these samples are of. Returns how many samples these had."""
        named, count = set(sample_ids), 0
        for group_id in {sample_id.rpartition("/")[0] for sample_id in named}:
            kept = []
            for one in self._groups.pop(group_id, ()):
                if named.isdisjoint(one.samples.sample_ids):
                    kept.append(one)
                else:
                    self.tokens -= one.tokens
                    count += len(one.samples)
            if kept:
                self._groups[group_id] = kept
        return count
