"""What a relay function may change: samples by assignment, never the history that later calls see."""

from collections.abc import AsyncIterator

import numpy as np
import pytest
from buffer_samples import make_samples
from relay_runs import RelayRun

from baton.api.buffer.v1 import relay_pb2 as pb
from baton.clients import LedgerClient
from baton.errors import InvalidRequestError
from processes import ServiceProcess


@pytest.fixture
async def run(buffer: ServiceProcess, run_id: str) -> AsyncIterator[RelayRun]:
    """Episode 0 is rolled out. Checks after each test that the ledger's proof holds."""
    async with RelayRun(buffer.address, run_id) as run, LedgerClient(buffer.address, timeout_s=20) as ledger:
        await run.roll_out(0, make_samples(range(8)))  # two puts: the service answers in more than one part
        yield run
        assert list((await ledger.audit(run_id)).faults) == []


def mask(buffer):
    buffer.buffer[0]["loss_mask"][:] = 0


def negate(buffer):
    values = buffer.buffer[1]["rollout_logprobs"]
    values *= -1


def centre(buffer):
    rewards = buffer.column("group_reward_mean")
    rewards -= rewards.mean()


def forget_lengths(buffer):
    buffer.column("response_ids")[0] = 0


def rename(buffer):
    buffer.column("sample_ids")[0] = "mine"


@pytest.mark.parametrize("change", [mask, negate, centre, forget_lengths, rename])
async def test_a_change_in_place_of_an_array_or_column_raises_and_no_later_call_sees_it(run, change):
    def attempt(buffers):
        with pytest.raises((ValueError, TypeError), match=r"read-only|does not support item assignment"):
            change(buffers[0])
        return buffers[0].buffer

    def look(buffers):
        seen.append(repr([(dict(sample), sample["response_length"]) for sample in buffers[0].buffer]))
        return buffers[0].buffer

    seen = []
    for function in (look, attempt, look):
        await run.choose(0, function)
    assert seen[0] == seen[1]


async def test_an_array_is_changed_by_assigning_a_new_one_or_in_a_copy(run):
    def change(buffers):
        first, second = buffers[0].buffer[1:3]
        first["loss_mask"] = np.zeros_like(first["loss_mask"])
        copied = second.copy()
        copied["loss_mask"][:] = 0
        return [first, copied, second]

    await run.choose(0, change)
    trained = (await run.lease(0, 0))[0][0]
    assert trained.sample_ids == ["s1~e0.0", "s2~e0.1"]
    assert not trained.loss_mask.values.any()
    stored = await run.relay.read_samples(run.run_id, 0, range(8))
    assert stored.to_proto() == make_samples(range(8)).to_proto()


async def test_metadata_changed_in_place_makes_a_new_sample_and_metadata_only_read_does_not(run):
    def change(buffers):
        first, second, third, fourth = buffers[0].buffer[:4]
        first["metadata"]["number"] = {"nested": [1]}
        first["metadata"]["number"]["nested"].append(2)
        assert (second["metadata"], third["metadata"]) == ({"number": 1}, {"number": 2})
        third.copy()["metadata"]["number"] = 7
        assert [sample.is_changed for sample in (first, second, third, fourth)] == [True, False, False, False]
        return [first, second, third, fourth]

    await run.choose(0, change)
    (trained,) = await run.lease(0, 0)
    assert [name for batch in trained for name in batch.sample_ids] == ["s0~e0.0", "s1", "s2", "s3"]
    assert trained[0].metadata == ['{"number": {"nested": [1, 2]}}', '{"number": 1}']
    (buffer,) = await run.history.buffers()
    assert buffer.buffer[0]["metadata"] == {"number": 0}


TOKENS = "it must be a list of whole numbers from 0 to 2147483647"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("prompt_ids", 5, f"has the prompt_ids 5; {TOKENS}"),
        ("prompt_ids", [[1], [2]], TOKENS),
        ("prompt_ids", [[1], 2], TOKENS),
        ("prompt_ids", "words", TOKENS),
        ("prompt_ids", None, "lacks prompt_ids"),
        ("rollout_logprobs", None, "lacks rollout_logprobs"),
        ("prompt_ids", [1, 2**40], f"{TOKENS}, and has {2**40} at place 1"),
        ("prompt_ids", [2**80], TOKENS),
        ("prompt_ids", [1.9], f"{TOKENS}, and has 1.9 at place 0"),
        ("prompt_ids", [-1], f"{TOKENS}, and has -1 at place 0"),
        ("loss_mask", [1, -1, 1, 1, 1], "a list of whole numbers from 0 to 255, and has -1 at place 1"),
        ("rollout_logprobs", [0, float("nan"), 0, 0, 0], "a list of finite numbers, and has nan at place 1"),
        ("rollout_logprobs", [0, 0, 0, 0, -1e300], "a list of finite numbers, and has -1e.300 at place 4"),
        ("policy_version_max", 2**70, "has the policy_version_max .*; it must be a whole number from"),
        ("group_size", 1.5, "has the group_size 1.5; it must be a whole number from"),
        ("metadata", {"a": {1, 2}}, "has the metadata .*; it must be JSON"),
    ],
)  # fmt: skip
async def test_a_value_that_cannot_be_stored_as_it_is_is_refused_with_its_item_key_and_rule(run, key, value, message):
    def make(buffers):
        return [buffers[0].buffer[1], buffers[0].buffer[0].copy() | {key: value}]

    with pytest.raises(InvalidRequestError, match=f"item 1 of what the relay function returned .*{message}"):
        await run.choose(0, make)


async def test_numbers_of_any_kind_that_mean_the_same_are_stored(run):
    changes = {"prompt_ids": (1.0, 2.0), "loss_mask": [True] * 5, "rollout_logprobs": np.zeros(5, np.int8), "metadata": None}
    await run.choose(0, lambda buffers: [buffers[0].buffer[0].copy() | changes])
    made = (await run.lease(0, 0))[0][0]
    assert (made.prompt_ids.values.tolist()[:2], made.loss_mask.values.tolist()[:5]) == ([1, 2], [1] * 5)
    assert made.metadata is None


async def test_more_changed_samples_than_one_request_may_bring_are_refused_as_the_relay_functions(run):
    def messages():
        for number in range(1001):
            yield pb.SelectSamplesRequest(run_id=run.run_id, episode_id=0, made=make_samples([number]).to_proto())

    with pytest.raises(InvalidRequestError, match=r"the relay function changed or made .* 268435456 bytes .* change fewer"):
        await run.relay._upload("SelectSamples", messages)
    assert (await run.choose(0, lambda buffers: buffers[0].buffer))[0] == 8
