"""Which samples make which micro-batch: pure functions of the episode's total and the batch sizes.

A pass has ceil(total / global batch) steps. Step s hands data-parallel rank r the micro-batches
[(s * dp + r) * n, (s * dp + r + 1) * n), where n = global batch // micro batch // dp. Past the pass's end the samples
repeat from its start, as often as it takes, so every rank always gets n full micro-batches.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np

from baton.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Share:
    """One data-parallel rank's share of one step of one pass."""

    pass_index: int
    step_index: int
    rank: int
    ranks: int
    """Data-parallel size."""
    shuffle_seed: int

    @property
    def step(self) -> str:
        """The step's name in its episode."""
        return f"p{self.pass_index}-s{self.step_index}"


def parse_step(step: str) -> tuple[int, int]:
    """(pass, step) of a step's name."""
    pass_index, step_index = step[1:].split("-s")
    return int(pass_index), int(step_index)


@dataclass(frozen=True, slots=True)
class LeaseId:
    """A step, and the attempt to train it. Attempts tell apart those who held the step one after the other."""

    step: str
    attempt: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises InvalidRequestError for anything but a lease id."""
        match = re.fullmatch(r"(p[0-9]+-s[0-9]+)-a([0-9]+)", text)
        if match is None:
            raise InvalidRequestError(f"lease_id is {text!r}; give the one that Lease returned, such as p0-s3-a1")
        return cls(match[1], int(match[2]))

    def __str__(self) -> str:
        """As clients see it."""
        return f"{self.step}-a{self.attempt}"


@dataclass(frozen=True, slots=True)
class Plan:
    """The samples of a share, in training order; micro-batches are consecutive ones."""

    positions: np.ndarray
    """Positions in the training set: int64 [samples of a rank]."""
    wrapped: np.ndarray
    """Whether the sample repeats one of this pass to fill the last step: bool, as positions."""


def steps_per_pass(total: int, global_batch_size: int) -> int:
    """Optimizer steps of one pass over `total` samples."""
    return -(-total // global_batch_size)


def first_uses(step_index: int, global_batch_size: int, samples: int) -> int:
    """How many of the pass's first `samples` samples the step uses for the first time; the others of it are repeats."""
    return max(0, min(global_batch_size, samples - step_index * global_batch_size))


@lru_cache(maxsize=64)
def plan(share: Share, episode_id: int, total: int | None, global_batch_size: int, unit: int = 1) -> Plan | None:
    """The share's samples, or None while they depend on a total that is not known (None); not to be changed.

    Without a total, the first pass is planned as if it never ended: right for every position that turns out to exist.
    `global_batch_size` must be a multiple of micro-batch size * `share.ranks`, `total` not zero; both multiples of `unit`,
    the number of consecutive samples that later passes keep together.
    """
    per_rank = global_batch_size // share.ranks
    start = (share.step_index * share.ranks + share.rank) * per_rank
    slots = np.arange(start, start + per_rank, dtype=np.int64)
    if total is None:
        return Plan(slots, np.zeros(slots.shape, bool)) if share.pass_index == 0 else None
    positions = slots % total
    if share.pass_index > 0:
        positions = _shuffled(total, unit, share.shuffle_seed, episode_id, share.pass_index)[positions]
    return Plan(positions, slots >= total)


def cut_by_tokens(tokens: np.ndarray, budget: int, unit: int = 1) -> list[slice]:
    """Consecutive micro-batches of at most `budget` tokens each, as few as that allows; a larger unit is alone in one.

    `tokens`: int64 [samples]; every `unit` samples stay together.
    """
    cuts, start, held = [], 0, 0
    for at, count in enumerate(tokens.reshape(-1, unit).sum(axis=1)):
        if at > start and held + count > budget:
            cuts.append(slice(start * unit, at * unit))
            start, held = at, 0
        held += int(count)
    cuts.append(slice(start * unit, len(tokens)))
    return cuts


@lru_cache(maxsize=8)
def _shuffled(total: int, unit: int, seed: int, episode_id: int, pass_index: int) -> np.ndarray:
    """The order of a later pass, which permutes units: int64 [total]. All ranks and restarts agree on it."""
    entropy = [seed % 2**64, episode_id, pass_index]
    # RandomState, not Generator: numpy promises that its numbers stay the same in every later version
    units = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(entropy))).permutation(total // unit)
    order = (units[:, None] * unit + np.arange(unit)).ravel()
    order.flags.writeable = False
    return order
