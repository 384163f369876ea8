"""Samples for every algorithm, and a step's loss on them however they are split over micro-batches and ranks."""

from collections.abc import Sequence
from threading import Barrier, Thread
from typing import NamedTuple

import numpy as np
import torch

from baton.clients.buffer import MicroBatch
from baton.samples import Ragged, RewardStatus, Samples
from services.trainer.objectives.base import DataParallel, Objective, Plan

LENGTHS = [3, 0, 5, 2, 4, 1, 6, 2]
"""Of the responses: four pairs, or two groups of four."""


def samples_of(seed: int = 0, lengths: Sequence[int] = LENGTHS) -> Samples:
    """Samples with every column that an algorithm reads."""
    rng, size = np.random.default_rng(seed), len(lengths)

    def column(low: float, high: float) -> Ragged:
        return Ragged.of([rng.uniform(low, high, length) for length in lengths], np.float32)

    rewards = rng.integers(0, 3, size).astype(np.float32)
    groups = [f"g{i // 4}" for i in range(size)]
    members = [[j for j in range(size) if groups[j] == group] for group in groups]
    return Samples(
        sample_ids=[f"s{i}" for i in range(size)],
        group_ids=groups,
        prompt_ids=Ragged.of([[1, 2]] * size, np.int32),
        response_ids=Ragged.of([rng.integers(0, 4, length) for length in lengths], np.int32),
        rollout_logprobs=column(-3, 0), reference_logprobs=column(-3, 0), values=column(-1, 1), token_rewards=column(-1, 1),
        rewards=rewards,
        reward_status=np.full(size, RewardStatus.VALUE, np.uint8),
        group_reward_mean=np.array([rewards[rows].mean() for rows in members], np.float32),
        group_reward_std=np.array([rewards[rows].std() for rows in members], np.float32),
        group_sizes=np.array([len(rows) for rows in members], np.int32),
    )  # fmt: skip


class Scores(NamedTuple):
    """As the policy gives them."""

    logprobs_N: torch.Tensor
    entropies_N: torch.Tensor


ALONE = DataParallel(0, 1, lambda tensor: tensor)


def micro_batches(samples: Samples, size: int) -> list[MicroBatch]:
    """Consecutive samples, `size` at a time."""
    starts = range(0, len(samples), size)
    return [MicroBatch("lease", samples.take(slice(start, min(start + size, len(samples)))), None) for start in starts]


def plan_of(
    objective: Objective, batches: Sequence[MicroBatch], data_parallel: DataParallel = ALONE, tail: str = "wrap"
) -> Plan:
    """The plan of one rank's micro-batches."""
    for batch in batches:
        objective.check(batch.samples)
    return objective.plan([objective.part(batch, tail, torch.device("cpu")) for batch in batches], data_parallel)


def token_scores(samples: Samples) -> Scores:
    """What a model might say of the response tokens, the same for a sample in whatever micro-batch it is."""
    numbers = zip(samples.sample_ids, samples.response_ids.lengths, strict=True)
    rows = [np.random.default_rng(int(name[1:])).uniform(-3, 0, length) for name, length in numbers]
    values = torch.tensor(np.concatenate(rows) if rows else [], dtype=torch.float32)
    return Scores(values, -values)


def losses_of(plan: Plan, batches: Sequence[MicroBatch]) -> dict[str, float]:
    """All that a rank reports, and the critic's loss; summed over its micro-batches."""
    sums: dict[str, float] = {}
    for index, batch in enumerate(batches):
        scores = token_scores(batch.samples)
        outputs = [plan.loss(index, scores)]
        if plan.value_loss is not None:
            outputs.append(plan.value_loss(index, scores.logprobs_N))
        for output in outputs:
            for name, value in output.sums.items():
                sums[name] = sums.get(name, 0.0) + float(value)
    return sums


def on_ranks(objectives: Sequence[Objective], shares: Sequence[Sequence[MicroBatch]]) -> list[Plan]:
    """The plans of several ranks, one thread each, which add up their tensors as an all-reduce does."""
    ranks, barrier = len(shares), Barrier(len(shares), timeout=20)
    given: list[torch.Tensor | None] = [None] * ranks
    plans: list[Plan | None] = [None] * ranks

    def work(rank: int) -> None:
        def all_reduce(tensor: torch.Tensor) -> torch.Tensor:
            given[rank] = tensor
            barrier.wait()
            total = sum(given)
            barrier.wait()
            return total

        plans[rank] = plan_of(objectives[rank], shares[rank], DataParallel(rank, ranks, all_reduce))

    threads = [Thread(target=work, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert None not in plans, "a rank failed; its traceback is above"
    return plans
