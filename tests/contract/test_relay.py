"""Relay over real gRPC and a real store: the history, what a relay function sees, and what is trained in the end."""

from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest
from buffer_samples import make_samples, numbers_of
from relay_runs import RelayRun, ids

from baton.clients import LedgerClient
from baton.errors import BackpressureError, ConflictError, InvalidRequestError, NotFoundError, NotReadyError
from baton.relay.builtins import concat, last
from baton.relay.samples import LENGTHS
from baton.samples import Samples
from processes import ServiceProcess, StoreProcess


@pytest.fixture
async def run(buffer: ServiceProcess, run_id: str) -> AsyncIterator[RelayRun]:
    """Checks after each test that the ledger's proof holds."""
    async with RelayRun(buffer.address, run_id) as run, LedgerClient(buffer.address, timeout_s=20) as ledger:
        yield run
        assert list((await ledger.audit(run_id)).faults) == []


def episode_of(number: int, size: int = 4) -> Samples:
    return make_samples(range(size * number, size * (number + 1)))


async def relay(run: RelayRun, function, episodes: int, keep: int | None = None) -> list[list[int]]:
    """Numbers of the samples that each episode trained."""
    trained, step = [], 0
    for episode in range(episodes):
        await run.roll_out(episode, episode_of(episode))
        total, steps = await run.choose(episode, function, keep)
        leased = await run.train(episode, steps, step)
        step += steps
        flat = [number for rank in leased for share in rank for batch in share for number in numbers_of(batch)]
        trained.append(flat[:total])
    return trained


async def test_the_page_s_example_trains_all_kept_episodes(run):
    def relay_sample_fn(episode_relay_buffers):
        buffers = []
        for relay_buffer in episode_relay_buffers:
            buffers += relay_buffer.buffer
        # episode_id = episode_relay_buffers[-1].episode_id
        return buffers

    assert await relay(run, relay_sample_fn, 4, keep=2) == [
        list(range(4)), list(range(8)), list(range(4, 12)), list(range(8, 16)),
    ]  # fmt: skip


async def test_a_negative_limit_keeps_every_episode(run):
    assert await relay(run, concat, 3) == [list(range(4)), list(range(8)), list(range(12))]


async def test_relayed_samples_arrive_whole_whatever_episode_stores_them(run):
    for episode in range(2):
        await run.roll_out(episode, episode_of(episode), batches=(8, 4))
        _, steps = await run.choose(episode, concat)
        leased = await run.train(episode, steps, episode)
    ((first, second),) = leased[0]
    assert first.to_proto() == episode_of(0).to_proto()
    assert second.to_proto() == episode_of(1).to_proto()


async def test_any_order_subset_and_repeat_may_be_chosen(run):
    def picky(buffers):
        samples = concat(buffers)
        return [samples[-1], samples[0], samples[0], samples[2]]

    assert await relay(run, picky, 2) == [[3, 0, 0, 2], [7, 0, 0, 2]]


async def test_choosing_nothing_trains_nothing(run):
    assert await relay(run, lambda _: [], 2) == [[], []]


async def test_a_sample_shows_every_field_and_loads_tokens_only_when_they_are_touched(run):
    stored = episode_of(0)
    await run.roll_out(0, stored)
    (buffer,) = await run.history.buffers()
    assert (buffer.episode_id, len(buffer)) == (0, 4)
    loads = []
    read = run.relay.read_samples

    async def counted(*arguments):
        loads.append(arguments)
        return await read(*arguments)

    run.relay.read_samples = counted

    def look(_):
        sample = buffer.buffer[2]
        assert sample["reward"] == pytest.approx(0.2)
        assert (sample["sample_id"], sample["group_id"], sample["policy_version_max"]) == ("s2", "g0", 3)
        assert {key: sample[key] for key in LENGTHS} == {"prompt_length": 2, "response_length": 7}
        assert sample["metadata"] == {"number": 2}
        assert not loads
        assert sample["response_ids"].tolist() == list(range(2000, 2007))
        assert sample["loss_mask"].tolist() == [0, 1, 0, 1, 0, 1, 0]
        assert len(loads) == 1
        assert len(dict(sample)) == len(sample) == 19
        with pytest.raises(KeyError):
            sample["nothing"]
        return [sample]

    assert await run.choose(0, look) == (1, 1)


async def test_a_changed_sample_is_a_new_one_and_the_history_stays(run):
    def change(buffers):
        sample = buffers[0].buffer[1]
        sample["reward"] = 5.0
        assert sample["reward"] == 5.0
        return [sample, buffers[0].buffer[0].copy()]

    await run.roll_out(0, episode_of(0))
    await run.choose(0, change)
    first = (await run.lease(0, 0))[0][0]
    assert first.sample_ids == ["s1~e0.0", "s0~e0.1"]
    assert first.rewards.tolist()[0] == 5.0
    assert first.response_ids.rows()[0].tolist() == episode_of(0).response_ids.rows()[1].tolist()
    stored = await run.relay.read_samples(run.run_id, 0, [0, 1, 2, 3])
    assert stored.to_proto() == episode_of(0).to_proto()
    (buffer,) = await run.history.buffers()
    assert buffer.buffer[1]["reward"] == pytest.approx(0.1)


async def test_a_sample_that_a_relay_function_made_is_found_with_its_steps(run):
    def change(buffers):
        samples = buffers[0].buffer
        samples[1]["reward"] = 5.0
        return [samples[0], samples[1], samples[2]]

    await run.roll_out(0, episode_of(0))
    await run.choose(0, change)
    await run.lease(0, 0)
    async with LedgerClient(run.buffer.address, timeout_s=20) as ledger:
        found = await ledger.find_sample(run.run_id, "s1~e0.0")
        assert (found.made, found.episode_id, found.position) == (True, 0, 0)
        assert (found.samples.sample_ids, found.samples.rewards.tolist()) == (["s1~e0.0"], [5.0])
        assert [step.partition(": leased")[0] for step in found.steps] == ["episode 0, pass 0, step 0"]
        original = await ledger.find_sample(run.run_id, "s1")
        assert (original.made, original.position, original.steps) == (False, 1, [])


async def test_a_plain_dict_is_a_new_sample(run):
    def make(buffers):
        copy = buffers[0].buffer[3].copy()
        return [copy | {"sample_id": "mine", "metadata": {"own": True}}, copy]

    await run.roll_out(0, episode_of(0))
    assert await run.choose(0, make) == (2, 1)
    trained = (await run.train(0, 1, 0))[0][0][0]
    assert trained.sample_ids == ["mine~e0.0", "s3~e0.1"]
    assert trained.metadata[0] == '{"own": true}'


async def test_choosing_again_is_answered_as_the_first_time_and_choosing_otherwise_is_a_conflict(run):
    await run.roll_out(0, episode_of(0))
    assert await run.choose(0, last) == await run.choose(0, last) == (4, 1)
    with pytest.raises(ConflictError, match="has another training set already"):
        await run.choose(0, lambda buffers: buffers[0].buffer[:2])
    assert ids(await run.train(0, 1, 0)) == [[[["s0", "s1"], ["s2", "s3"]]]]
    assert await run.choose(0, last) == (4, 1)


async def test_the_history_outlives_the_buffer_and_goes_on_after_a_restart(store, run_file, run_id, tmp_path):
    process = ServiceProcess("buffer", run_file, tmp_path, "--store", store.url)
    process.start()
    try:
        async with RelayRun(process.address, run_id) as run:
            assert await relay(run, concat, 2) == [list(range(4)), list(range(8))]
        process.kill()
        process.start()
        async with RelayRun(process.address, run_id) as run:
            await run.roll_out(2, episode_of(2))
            assert await run.choose(2, concat, keep=2) == (8, 2)
            leased = ids(await run.train(2, 2, 5))
            assert [name for step in leased for name in step[0][0] + step[0][1]] == [f"s{i}" for i in range(4, 12)]
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda _: None, "returned a NoneType; it must return a list"),
        (lambda buffers: tuple(buffers[0].buffer), "returned a tuple; it must return a list"),
        (lambda buffers: [buffers[0].buffer[0], 3], "item 1 of what the relay function returned is a int"),
        (lambda buffers: [buffers[0].buffer], "item 0 of what the relay function returned is a list"),
        (lambda _: [{"reward": 1.0}], "lacks prompt_ids, response_ids, rollout_logprobs, policy_version_max"),
        (lambda buffers: [buffers[0].buffer[0].copy() | {"rewrd": 1}], "has the key 'rewrd'; a sample has sample_id"),
        (lambda buffers: [buffers[0].buffer[0].copy() | {"rollout_logprobs": [0.5]}], "has 1 rollout_logprobs, but 5"),
        (lambda buffers: [buffers[0].buffer[0].copy() | {"span_versions": [1], "span_tokens": [4]}], "of 4 tokens"),
        (lambda buffers: [buffers[0].buffer[0].copy() | {"reward": float("nan"), "reward_status": 1}], "reward nan"),
        (lambda buffers: [buffers[0].buffer[0].copy() | {"policy_version_max": -1}], "no policy version"),
        (lambda buffers: [buffers[0].buffer[0].copy() | {"reward": "high"}], "has the reward 'high'; it must be a number"),
    ],
)  # fmt: skip
async def test_what_is_no_list_of_samples_is_refused_and_changes_nothing(run, store, function, message):
    await run.roll_out(0, episode_of(0))
    before = store.keys(run.run_id)
    with pytest.raises(InvalidRequestError, match=message):
        await run.choose(0, function)
    assert store.keys(run.run_id) == before
    assert await run.choose(0, last) == (4, 1)


async def test_a_sample_of_another_run_is_refused(run, buffer):
    async with RelayRun(buffer.address, f"{run.run_id}-other") as other:
        await other.roll_out(7, episode_of(0))
        (foreign,) = await other.history.buffers()
    await run.roll_out(0, episode_of(0))
    with pytest.raises(InvalidRequestError, match="a sample of episode 7, which is not in the history"):
        await run.choose(0, lambda _: foreign.buffer)


async def test_a_sample_that_was_evicted_meanwhile_is_not_found(run):
    await relay(run, last, 2)
    await run.roll_out(2, episode_of(2))
    await run.relay.trim_history(run.run_id, keep_episodes=1)
    with pytest.raises(NotFoundError, match=r"episode 0 of .* evicted"):
        await run.relay.select(run.run_id, 2, np.asarray([[2, 0], [0, 1]]))


async def test_an_episode_that_a_training_set_refers_to_is_not_evicted_before_that_is_trained(run):
    await relay(run, last, 1)
    await run.roll_out(1, episode_of(1))
    await run.choose(1, concat)
    await run.roll_out(2, episode_of(2))
    assert (await run.relay.trim_history(run.run_id, keep_episodes=1)).evicted == []
    await run.train(1, 2, 1)
    assert (await run.relay.trim_history(run.run_id, keep_episodes=1)).evicted == [0, 1]


async def test_a_history_beyond_its_bytes_is_an_error_or_an_eviction_as_asked_for(run):
    await relay(run, last, 3)
    episodes = await run.relay.list_history(run.run_id)
    keep = sum(episode.bytes for episode in episodes) - 1
    with pytest.raises(BackpressureError, match=r"more than store.relay_max_bytes"):
        await run.relay.trim_history(run.run_id, keep_bytes=keep)
    assert await run.relay.list_history(run.run_id) == episodes
    assert (await run.relay.trim_history(run.run_id, keep_bytes=keep, evict_for_bytes=True)).evicted == [0]
    with pytest.raises(InvalidRequestError, match=r"episode 2 of .* alone has \d+ bytes, more than store.relay_max"):
        await run.relay.trim_history(run.run_id, keep_bytes=1, evict_for_bytes=True)
    newest = (await run.relay.list_history(run.run_id))[-1].bytes
    assert await run.relay.trim_history(run.run_id, keep_bytes=newest, evict_for_bytes=True) == ([1], 1), "newest stays"


async def test_a_relayed_episode_cannot_be_trained_before_its_set_is_chosen(run):
    await run.roll_out(0, episode_of(0))
    with pytest.raises(NotReadyError, match="still being rolled out"):
        await run.buffer.delete_episode(run.run_id, 0)
    found = run.buffer.lease(run.run_id, 0, pass_index=0, step_index=0, wait_s=0.1)
    with pytest.raises(Exception, match="needs what the relay function selects"):
        await anext(aiter(found))
    await run.choose(0, last)
    await run.train(0, 1, 0)


async def test_only_closed_relayed_episodes_have_a_training_set(run):
    await run.roll_out(0, episode_of(0), relayed=False)
    with pytest.raises(InvalidRequestError, match="is not relayed"):
        await run.relay.select(run.run_id, 0, np.asarray([[0, 0]]))
    await run.buffer.open_episode(
        run.run_id, 1, expected_samples=None, global_batch_size=4, micro_batch_size=2, relayed=True
    )
    with pytest.raises(NotReadyError, match="still being rolled out"):
        await run.relay.select(run.run_id, 1, np.asarray([[0, 0]]))
    with pytest.raises(NotFoundError, match="was not opened"):
        await run.relay.select(run.run_id, 9, np.asarray([[0, 0]]))


async def test_samples_with_other_columns_cannot_be_trained_together(run):
    await run.roll_out(0, episode_of(0))
    await run.choose(0, last)
    await run.train(0, 1, 0)
    await run.roll_out(1, replace(episode_of(1), reference_logprobs=None))
    with pytest.raises(InvalidRequestError, match=r"reference_logprobs: only one of episode 0 .* and episode 1"):
        await run.choose(1, concat)


async def test_the_ends_of_relayed_episodes_leave_their_samples_and_nothing_else(run, store: StoreProcess):
    for episode in range(2):
        await run.roll_out(episode, episode_of(episode))
        await run.choose(episode, lambda buffers: [sample.copy() for sample in buffers[-1].buffer], keep=2)
        await run.train(episode, 1, episode)
    kinds = sorted(name.removeprefix(f"baton:{{{run.run_id}}}:") for name in store.keys(run.run_id))
    assert [kind for kind in kinds if not kind.startswith("chunk:")] == [
        "ended", "episode:0", "episode:0:chunks", "episode:0:groups", "episode:0:sample-ids",
        "episode:1", "episode:1:chunks", "episode:1:groups", "episode:1:sample-ids", "episodes", "global-steps", "usage",
    ]  # fmt: skip
    assert (await run.relay.trim_history(run.run_id, keep_episodes=1)).evicted == [0]
    assert len([kind for kind in store.keys(run.run_id) if ":chunk:" in kind]) == 1
