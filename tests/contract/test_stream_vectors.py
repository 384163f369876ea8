"""Which samples each step hands to each rank, beside what ChatLearn's StreamDataset did with the same configuration.

`then` was recorded from alibaba/ChatLearn at commit d8983915, with Ray stubbed out. `now` is what Baton trains, where it
decides otherwise: a dynamic episode is trained whole, and the last step is filled for every rank, from the pass's start and
as often as it takes.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from buffer_samples import make_samples
from relay_runs import RelayRun, ids

from baton.errors import InvalidRequestError
from baton.relay.builtins import concat, last
from baton.samples import Samples
from processes import ServiceProcess

Steps = list[list[list[list[int]] | None]]
"""By step, rank and micro-batch; None: the rank got nothing."""


@dataclass(frozen=True)
class Vector:
    name: str
    samples: int
    put: int
    micro: int
    batch: int
    then: Steps
    now: Steps | None = None
    """None: as then."""
    ranks: int = 1


PLAIN = [
    Vector(
        "fixed remainder", 16, 4, 5, 10,
        [[[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]], [[[10, 11, 12, 13, 14], [15, 0, 1, 2, 3]]]],
    ),
    Vector(
        "dynamic remainder", 16, 4, 5, 10,
        [[[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]], [[[10, 11, 12, 13, 14], [10, 11, 12, 13, 14]]]],
        [[[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]], [[[10, 11, 12, 13, 14], [15, 0, 1, 2, 3]]]],
    ),
    Vector(
        "dynamic puts larger than micro-batches", 16, 8, 2, 4,
        [[[[0, 1], [2, 3]]], [[[4, 5], [6, 7]]], [[[8, 9], [8, 9]]], [None]],
        [[[[0, 1], [2, 3]]], [[[4, 5], [6, 7]]], [[[8, 9], [10, 11]]], [[[12, 13], [14, 15]]]],
    ),
    Vector("dynamic exact", 16, 4, 4, 8, [[[[0, 1, 2, 3], [4, 5, 6, 7]]], [[[8, 9, 10, 11], [12, 13, 14, 15]]]]),
    Vector(
        "dynamic, two samples per prompt", 16, 8, 4, 8,
        [[[[0, 1, 2, 3], [4, 5, 6, 7]]]],
        [[[[0, 1, 2, 3], [4, 5, 6, 7]]], [[[8, 9, 10, 11], [12, 13, 14, 15]]]],
    ),
    Vector(
        "fixed, last step incomplete", 10, 4, 4, 8,
        [[[[0, 1, 2, 3], [4, 5, 6, 7]]], [[[8, 9, 0, 1], [8, 9, 0, 1]]]],
        [[[[0, 1, 2, 3], [4, 5, 6, 7]]], [[[8, 9, 0, 1], [2, 3, 4, 5]]]],
    ),
    Vector(
        "fixed, last step incomplete for four ranks", 20, 4, 2, 16,
        [
            [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]], [[12, 13], [14, 15]]],
            [[[16, 17], [18, 19]], None, None, None],
        ],
        [
            [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]], [[12, 13], [14, 15]]],
            [[[16, 17], [18, 19]], [[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]],
        ],
        ranks=4,
    ),
]  # fmt: skip


def numbers(leased: list[list[list[Samples]]]) -> Steps:
    return [[[[int(name[1:]) for name in batch] for batch in share] for share in step] for step in ids(leased)]


@pytest.mark.parametrize("vector", PLAIN, ids=lambda vector: vector.name)
async def test_steps_of_an_episode(vector: Vector, buffer: ServiceProcess, run_id: str) -> None:
    async with RelayRun(buffer.address, run_id) as run:
        samples = make_samples(range(vector.samples))
        steps = await run.roll_out(0, samples, batches=(vector.batch, vector.micro), relayed=False, put=vector.put)
        trained = numbers(await run.train(0, steps, 0, vector.ranks))
    assert trained == (vector.now or vector.then)
    if vector.now:
        assert trained != vector.then, "the difference is on purpose, and stated"


async def test_a_flow_that_makes_more_than_a_fixed_episode_takes_is_an_error_where_it_was_trained_by_half(buffer, run_id):
    async with RelayRun(buffer.address, run_id) as run:
        sizes = {"expected_samples": 8, "global_batch_size": 8, "micro_batch_size": 4}
        await run.buffer.open_episode(run_id, 0, **sizes)
        await run.buffer.put(run_id, 0, make_samples(range(8)))
        with pytest.raises(InvalidRequestError, match="stream_data_loader_type: dynamic"):
            await run.buffer.put(run_id, 0, make_samples(range(8, 16)))


@dataclass(frozen=True)
class Relay:
    name: str
    function: object
    keep: int | None
    samples: int
    micro: int
    batch: int
    kept: list[list[int]]
    """By episode: ids of the buffers that the function is given."""
    then: list[Steps]
    """By episode."""
    now: list[Steps] | None = None


RELAYED = [
    Relay(
        "two episodes, all samples", concat, 2, 4, 2, 4, [[0], [0, 1], [1, 2], [2, 3]],
        [
            [[[[0, 1], [2, 3]]]],
            [[[[0, 1], [2, 3]]], [[[4, 5], [6, 7]]]],
            [[[[4, 5], [6, 7]]], [[[8, 9], [10, 11]]]],
            [[[[8, 9], [10, 11]]], [[[12, 13], [14, 15]]]],
        ],
    ),
    Relay(
        "one episode, the last", last, 1, 4, 2, 4, [[0], [1], [2]],
        [[[[[0, 1], [2, 3]]]], [[[[4, 5], [6, 7]]]], [[[[8, 9], [10, 11]]]]],
    ),
    Relay(
        "a function that returns one sample", lambda buffers: buffers[-1].buffer[:1], 1, 8, 2, 8, [[0]],
        [[[[[0, 0], [0, 0]]]]], [[[[[0, 0], [0, 0], [0, 0], [0, 0]]]]],
    ),
    Relay("a function that returns nothing", lambda _: [], 1, 4, 2, 4, [[0]], [[]]),
    Relay(
        "five episodes of sixteen samples", concat, 5, 16, 5, 10, [[0], [0, 1], [0, 1, 2]],
        [
            [[[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]], [[[10, 11, 12, 13, 14], [15, 0, 1, 2, 3]]]],
            [
                *([[list(range(at, at + 5)), list(range(at + 5, at + 10))]] for at in (0, 10, 20)),
                [[[30, 31, 0, 1, 2], [30, 31, 0, 1, 2]]],
            ],
            [
                *([[list(range(at, at + 5)), list(range(at + 5, at + 10))]] for at in (0, 10, 20, 30)),
                [[[40, 41, 42, 43, 44], [45, 46, 47, 0, 1]]],
            ],
        ],
        [
            [[[[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]], [[[10, 11, 12, 13, 14], [15, 0, 1, 2, 3]]]],
            [
                *([[list(range(at, at + 5)), list(range(at + 5, at + 10))]] for at in (0, 10, 20)),
                [[[30, 31, 0, 1, 2], [3, 4, 5, 6, 7]]],
            ],
            [
                *([[list(range(at, at + 5)), list(range(at + 5, at + 10))]] for at in (0, 10, 20, 30)),
                [[[40, 41, 42, 43, 44], [45, 46, 47, 0, 1]]],
            ],
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize("vector", RELAYED, ids=lambda vector: vector.name)
async def test_steps_of_relayed_episodes(vector: Relay, buffer: ServiceProcess, run_id: str) -> None:
    trained, seen, step = [], [], 0
    async with RelayRun(buffer.address, run_id) as run:

        def function(buffers):
            seen.append([buffer.episode_id for buffer in buffers])
            return vector.function(buffers)

        for episode in range(len(vector.then)):
            samples = make_samples(np.arange(vector.samples) + vector.samples * episode)
            await run.roll_out(episode, samples, batches=(vector.batch, vector.micro))
            _, steps = await run.choose(episode, function, vector.keep)
            trained.append(numbers(await run.train(episode, steps, step)))
            step += steps
    assert seen == vector.kept
    assert trained == (vector.now or vector.then)
    if vector.now:
        assert trained != vector.then, "the difference is on purpose, and stated"
