"""What a relay function may do with pairs: choose whole ones, in any order, and change their samples."""

from collections.abc import AsyncIterator

import pytest
from buffer_samples import make_samples
from relay_runs import RelayRun, ids

from baton.errors import InvalidRequestError
from processes import ServiceProcess

PAIRS = {"expected_samples": None, "global_batch_size": 4, "micro_batch_size": 2, "relayed": True, "samples_per_unit": 2}


@pytest.fixture
async def run(buffer: ServiceProcess, run_id: str) -> AsyncIterator[RelayRun]:
    """Two episodes of four pairs."""
    async with RelayRun(buffer.address, run_id) as run:
        for episode in (0, 1):
            await run.buffer.open_episode(run_id, episode, **PAIRS)
            await run.buffer.put(run_id, episode, make_samples(range(8 * episode, 8 * episode + 8), group_size=2))
            await run.buffer.close_episode(run_id, episode)
        yield run


def changed(sample, reward):
    sample = sample.copy()
    sample["reward"] = reward
    return sample


def samples_of(buffers):
    return [sample for buffer in buffers for sample in buffer.buffer]


def by_numbers(*numbers):
    return lambda buffers: [samples_of(buffers)[number] for number in numbers]


def rejected_is_changed(buffers):
    chosen, rejected = samples_of(buffers)[4:6]
    return [chosen, changed(rejected, 0.5)]


def rejected_is_of_another_pair(buffers):
    samples = samples_of(buffers)
    return [samples[4], changed(samples[7], 0.5)]


def both_are_made_of_two_pairs(buffers):
    samples = samples_of(buffers)
    return [changed(samples[4], 0.5), changed(samples[7], 0.5)]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (by_numbers(0, 1, 3, 2), r"samples 2 to 3 .* \(episode 0, position 3\), \(episode 0, position 2\)"),
        (by_numbers(1, 2), r"samples 0 to 1 .* \(episode 0, position 1\), \(episode 0, position 2\)"),
        (by_numbers(0, 9), r"\(episode 0, position 0\), \(episode 1, position 1\)"),
        (by_numbers(4, 4), r"\(episode 0, position 4\), \(episode 0, position 4\)"),
        (rejected_is_of_another_pair, r"\(episode 0, position 4\), \(made, 0\), of the groups g2 and g3"),
        (both_are_made_of_two_pairs, r"\(made, 0\), \(made, 1\), of the groups g2 and g3"),
    ],
)
async def test_a_training_set_that_divides_or_turns_a_pair_is_refused_and_another_may_follow(run, function, message):
    with pytest.raises(InvalidRequestError, match=message + r".*episode 1 of .* keeps every 2 together.*whole pairs"):
        await run.choose(1, function)
    assert await run.choose(1, by_numbers(0, 1)) == (2, 1)


async def test_whole_pairs_may_be_repeated_mixed_with_earlier_ones_and_changed(run):
    def function(buffers):
        return by_numbers(14, 15, 2, 3, 2, 3)(buffers) + rejected_is_changed(buffers)

    assert await run.choose(1, function) == (8, 2)
    trained = [name for step in ids(await run.train(1, 2, 0)) for [*batches] in step for batch in batches for name in batch]
    assert [name.partition("~")[0] for name in trained] == ["s14", "s15", "s2", "s3", "s2", "s3", "s4", "s5"]
