"""Which samples make which micro-batch: pure functions of the episode's total and the batch sizes.

A pass has ceil(total / global batch) steps. Step s hands data-parallel rank r the micro-batches
[(s * dp + r) * n, (s * dp + r + 1) * n), where n = global batch // micro batch // dp. Past the pass's end the samples
repeat from its start, as often as it takes, so every rank always gets n full micro-batches.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

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
    def lease_id(self) -> str:
        """The same for all ranks of the step, for ever."""
        return f"p{self.pass_index}-s{self.step_index}"


def parse_lease_id(lease_id: str) -> tuple[int, int]:
    """(pass, step) of a lease id. Raises InvalidRequestError for anything else."""
    match = re.fullmatch(r"p([0-9]+)-s([0-9]+)", lease_id)
    if match is None:
        raise InvalidRequestError(f"lease_id is {lease_id!r}; give the one that Lease returned, such as p0-s3")
    return int(match[1]), int(match[2])


@dataclass(frozen=True, slots=True)
class Plan:
    """The micro-batches of a share, row by row."""

    positions: np.ndarray
    """Positions of the samples in the episode: int64 [n, micro batch]."""
    wrapped: np.ndarray
    """Whether the sample repeats one of this pass to fill the last step: bool [n, micro batch]."""


def steps_per_pass(total: int, global_batch_size: int) -> int:
    """Optimizer steps of one pass over `total` samples."""
    return -(-total // global_batch_size)


def first_uses(step_index: int, global_batch_size: int, samples: int) -> int:
    """How many of the pass's first `samples` samples the step uses for the first time; the others of it are repeats."""
    return max(0, min(global_batch_size, samples - step_index * global_batch_size))


def plan(share: Share, episode_id: int, total: int | None, global_batch_size: int, micro_batch_size: int) -> Plan | None:
    """The share's micro-batches, or None while they depend on a total that is not known (None).

    Without a total, the first pass is planned as if it never ended: right for every position that turns out to exist.
    `global_batch_size` must be a multiple of `micro_batch_size` * `share.ranks`, `total` not zero.
    """
    per_rank = global_batch_size // share.ranks
    start = (share.step_index * share.ranks + share.rank) * per_rank
    slots = np.arange(start, start + per_rank, dtype=np.int64).reshape(-1, micro_batch_size)
    if total is None:
        return Plan(slots, np.zeros(slots.shape, bool)) if share.pass_index == 0 else None
    positions = slots % total
    if share.pass_index > 0:
        positions = _shuffled(total, share.shuffle_seed, episode_id, share.pass_index)[positions]
    return Plan(positions, slots >= total)


@lru_cache(maxsize=8)
def _shuffled(total: int, seed: int, episode_id: int, pass_index: int) -> np.ndarray:
    """The order of a later pass: int64 [total]. All ranks and restarts agree on it."""
    entropy = [seed % 2**64, episode_id, pass_index]
    # RandomState, not Generator: numpy promises that its numbers stay the same in every later version
    order = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(entropy))).permutation(total)
    order.flags.writeable = False
    return order
