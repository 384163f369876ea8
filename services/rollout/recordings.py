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

    def check_room(self) -> None:
        """Raises BackpressureError if no further request may begin."""
        if self.tokens >= self._max_tokens:
            raise BackpressureError(
                f"{self.tokens} recorded tokens wait to be taken, and models.policy.max_recorded_tokens is "
                f"{self._max_tokens}; call ForgetRecorded for the groups that you have, or raise it"
            )

    def add(self, group_id: str, answered: Answered) -> None:
        """Numbers the samples on through the group."""
        earlier = self._groups.setdefault(group_id, [])
        first = sum(len(one.samples) for one in earlier)
        ids = [f"{group_id}/{first + index}" for index in range(len(answered.samples))]
        earlier.append(replace(answered, samples=replace(answered.samples, sample_ids=ids)))
        self.tokens += answered.tokens

    def listed(self, group_ids: Sequence[str], episode_id: int) -> Iterator[Answered]:
        """The responses of these groups, of all if none is named, as of that episode."""
        for group_id in group_ids or list(self._groups):
            for one in self._groups.get(group_id, ()):
                episode_ids = np.full(len(one.samples), episode_id, np.int64)
                yield replace(one, samples=replace(one.samples, episode_ids=episode_ids))

    def forget(self, group_ids: Sequence[str]) -> int:
        """Drops these groups, all if none is named. Returns how many samples they had."""
        dropped = [one for group_id in group_ids or list(self._groups) for one in self._groups.pop(group_id, ())]
        self.tokens -= sum(one.tokens for one in dropped)
        return sum(len(one.samples) for one in dropped)
