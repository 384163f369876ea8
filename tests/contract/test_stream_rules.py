"""Any episode through the real service hands out what the rules of StreamDataset say, stated here once more and otherwise.

The samples to train, again and again, are one endless row. Cut into micro-batches, the ranks take n of them each in turn, as
many steps as it takes to reach the row's first repetition. Later passes do the same with the samples in another order.
"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice, takewhile

import numpy as np
import pytest
from buffer_samples import make_samples, numbers_of
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.clients import BufferClient, RelayClient, blocking
from baton.errors import DeadlineError, InvalidRequestError
from processes import ServiceProcess

Shares = list[list[list[list[int]]]]
"""By step, rank and micro-batch."""


@dataclass(frozen=True)
class Plan:
    """An episode of each kind there is, put in pieces of any size."""

    kind: str
    micro: int
    ranks: int
    each: int
    """Micro-batches of a rank in a step."""
    total: int
    pieces: list[int]
    passes: int
    chosen: list[int]
    """What a relay function returns: any samples, any number of times."""

    @property
    def batch(self) -> int:
        return self.micro * self.ranks * self.each

    @property
    def trains(self) -> list[int]:
        return self.chosen if self.kind == "relayed" else list(range(self.total))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    total = draw(st.sampled_from([1, 1, 2]) | st.integers(1, 30))
    pieces, left = [], total
    while left:
        pieces.append(draw(st.integers(1, left)))
        left -= pieces[-1]
    chosen = draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=30))
    sizes = draw(st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(1, 3)))
    kind, passes = draw(st.sampled_from(["fixed", "dynamic", "relayed"])), draw(st.integers(1, 3))
    return Plan(kind, *sizes, total, pieces, passes, chosen)


def shares(row: list[int], plan: Plan) -> Shares:
    """Of one pass over `row`."""
    steps = 1
    while steps * plan.batch < len(row):
        steps += 1
    endless = cycle(row)
    return [
        [[list(islice(endless, plan.micro)) for _ in range(plan.each)] for _ in range(plan.ranks)] for _ in range(steps)
    ]  # fmt: skip


class Lessee:
    """Leases all of an episode, which it opens and fills."""

    def __init__(self, address: str, plan: Plan) -> None:
        self.run_id, self.plan = uuid.uuid4().hex, plan
        self.buffer, self.relay = blocking(BufferClient, address, timeout_s=20), blocking(RelayClient, address, timeout_s=20)

    def __enter__(self) -> "Lessee":
        expected = self.plan.total if self.plan.kind == "fixed" else None
        sizes = {"global_batch_size": self.plan.batch, "micro_batch_size": self.plan.micro}
        self.buffer.open_episode(
            self.run_id, 0, expected_samples=expected, **sizes, relayed=self.plan.kind == "relayed", passes=self.plan.passes
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self.buffer.close()
        self.relay.close()

    def lease(self, step: int, rank: int, pass_index: int = 0) -> Iterator[tuple[list[int], list[bool]]]:
        """(numbers, whether each only fills the step) of every micro-batch that is there."""
        found = self.buffer.lease(
            self.run_id, 0, pass_index=pass_index, step_index=step, data_parallel_rank=rank,
            data_parallel_size=self.plan.ranks, shuffle_seed=3, wait_s=0.0,
        )  # fmt: skip
        try:
            for batch in found:
                yield numbers_of(batch.samples), batch.wrapped.tolist()
        except DeadlineError:
            pass

    def fill(self) -> None:
        """What is there of the first step can be leased at once; while a dynamic episode is open, its end is not known."""
        seen = self.plan.total if self.plan.kind == "fixed" else self.plan.batch
        first, stored = shares(list(range(seen)), self.plan)[0], 0
        for piece in self.plan.pieces:
            self.buffer.put(self.run_id, 0, make_samples(range(stored, stored + piece), group_size=1))
            stored += piece
            for rank, share in enumerate(first):
                there = [] if self.plan.kind == "relayed" else list(takewhile(set(range(stored)).issuperset, share))
                assert [part for part, _ in self.lease(0, rank)] == there
        self.buffer.close_episode(self.run_id, 0)
        if self.plan.kind == "relayed":
            self.relay.select(self.run_id, 0, np.array([(0, place) for place in self.plan.chosen]), None)

    def train(self, pass_index: int, steps: int, first_global_step: int) -> tuple[Shares, list[bool]]:
        """What a pass hands out, and of all of it in order whether it only fills the last step."""
        found, repeats = [], []
        for step in range(steps):
            parts = [list(self.lease(step, rank, pass_index)) for rank in range(self.plan.ranks)]
            found.append([[numbers for numbers, _ in part] for part in parts])
            repeats += [flag for part in parts for _, flags in part for flag in flags]
            self.buffer.ack(self.run_id, 0, f"p{pass_index}-s{step}-a1", global_step=first_global_step + step)
        with pytest.raises(InvalidRequestError, match=f"has {steps} steps"):
            list(self.lease(steps, 0, pass_index))
        return found, repeats


@pytest.fixture(scope="module")
def address(buffer: ServiceProcess) -> str:
    return buffer.address


def test_any_episode_is_handed_out_as_the_rules_say(address: str) -> None:
    @given(plans())
    @settings(max_examples=60, derandomize=True, deadline=None, database=None)
    def holds(plan: Plan) -> None:
        with Lessee(address, plan) as lessee:
            lessee.fill()
            expected, total = shares(plan.trains, plan), len(plan.trains)
            for pass_index in range(plan.passes):
                found, repeats = lessee.train(pass_index, len(expected), pass_index * len(expected))
                row = [number for step in found for share in step for part in share for number in part]
                assert repeats == [at >= total for at in range(len(row))]
                if pass_index == 0:
                    assert found == expected
                else:  # in another order, which fills the last step too
                    assert sorted(row[:total]) == sorted(plan.trains)
                    assert found == shares(row[:total], plan)
            assert lessee.buffer.delete_episode(lessee.run_id, 0) == plan.total

    holds()


@pytest.mark.parametrize(("batch", "micro", "ranks"), [(16, 2, 3), (8, 8, 2), (4, 2, 4), (10, 5, 3)])
def test_ranks_that_do_not_divide_the_batch_are_refused_where_chatlearn_left_samples_out(
    address: str, batch: int, micro: int, ranks: int
) -> None:
    assert batch // micro // ranks * micro * ranks < batch, "what ChatLearn's ranks trained of a step"
    with blocking(BufferClient, address, timeout_s=20) as buffer:
        run_id = uuid.uuid4().hex
        buffer.open_episode(run_id, 0, expected_samples=batch, global_batch_size=batch, micro_batch_size=micro)
        buffer.put(run_id, 0, make_samples(range(batch), group_size=1))
        with pytest.raises(InvalidRequestError, match=f"{batch} is not a multiple of .*, {micro} x {ranks}; change"):
            list(buffer.lease(run_id, 0, pass_index=0, step_index=0, data_parallel_size=ranks))
