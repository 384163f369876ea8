"""Episodes over real gRPC and a real store: opening, putting, closing, counting, deleting."""

from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest
from buffer_samples import make_samples

from baton.api.buffer.v1 import buffer_pb2 as pb
from baton.clients.buffer import BufferClient
from baton.errors import ConflictError, InvalidRequestError, NotFoundError, NotReadyError
from baton.samples import Samples
from processes import ServiceProcess


@pytest.fixture
async def client(buffer: ServiceProcess) -> AsyncIterator[BufferClient]:
    async with BufferClient(buffer.address, timeout_s=20) as client:
        yield client


async def open_fixed(client: BufferClient, run_id: str, samples: int, global_batch: int = 8, micro_batch: int = 4) -> None:
    await client.open_episode(
        run_id, 0, expected_samples=samples, global_batch_size=global_batch, micro_batch_size=micro_batch
    )


async def open_dynamic(client: BufferClient, run_id: str, *, global_batch: int = 8, micro_batch: int = 4) -> None:
    await client.open_episode(run_id, 0, expected_samples=None, global_batch_size=global_batch, micro_batch_size=micro_batch)


async def lease(client: BufferClient, run_id: str, step: int, *, pass_index: int = 0) -> Samples:
    found = client.lease(run_id, 0, pass_index=pass_index, step_index=step, wait_s=30)
    return Samples.concat([micro_batch.samples async for micro_batch in found])


async def train(client: BufferClient, run_id: str, *steps: int, pass_index: int = 0) -> None:
    for step in steps:
        await lease(client, run_id, step, pass_index=pass_index)
        await client.ack(run_id, 0, f"p{pass_index}-s{step}-a1", global_step=100 * pass_index + step)


async def test_a_lease_returns_every_column_exactly_as_it_was_put(client, run_id):
    await open_fixed(client, run_id, 16)
    for first in range(0, 16, 4):
        await client.put(run_id, 0, make_samples(range(first, first + 4)))
    assert await client.close_episode(run_id, 0) == (16, 2)
    for step in range(2):
        expected = make_samples(range(8 * step, 8 * step + 8))
        assert (await lease(client, run_id, step)).to_proto() == expected.to_proto()


async def test_a_column_that_was_not_put_is_absent_from_the_lease(client, run_id):
    await open_fixed(client, run_id, 8)
    part = replace(make_samples(range(8)), reference_logprobs=None, rewards=None, reward_status=None)
    await client.put(run_id, 0, part)
    assert (await lease(client, run_id, 0)).to_proto() == part.to_proto()


async def test_a_repeated_put_is_answered_as_the_first_was_and_stores_nothing(client, run_id):
    await open_dynamic(client, run_id)
    request = pb.PutRequest(run_id=run_id, episode_id=0, request_id="a", samples=make_samples(range(4)).to_proto())
    first = await client._upload("Put", lambda: [request.SerializeToString()])
    assert (first.first_position, first.stored_samples) == (0, 4)
    assert await client.put(run_id, 0, make_samples(range(4, 10)), request_id="b") == 10
    assert await client._upload("Put", lambda: [request.SerializeToString()]) == first
    await client.close_episode(run_id, 0)
    assert await client._upload("Put", lambda: [request.SerializeToString()]) == first
    assert (await client.get_episode(run_id, 0)).stored == 10


async def test_a_put_too_large_for_one_message_is_one_sequence_of_samples(client, run_id):
    await open_dynamic(client, run_id, global_batch=64, micro_batch=8)
    samples = make_samples(range(64), tokens=10_000)  # 13 bytes per token: three messages
    assert await client.put(run_id, 0, samples, request_id="large") == 64
    assert await client.put(run_id, 0, samples, request_id="large") == 64
    assert (await lease(client, run_id, 0)).to_proto() == samples.to_proto()


async def test_a_sample_id_put_twice_is_a_conflict_that_names_it_and_stores_nothing(client, run_id):
    await open_dynamic(client, run_id)
    await client.put(run_id, 0, make_samples(range(4)))
    with pytest.raises(ConflictError, match=r"\bs3\b.*another request id"):
        await client.put(run_id, 0, make_samples([4, 5, 3]))
    assert (await client.get_episode(run_id, 0)).stored == 4
    with pytest.raises(InvalidRequestError, match=r"\bs6\b occurs twice"):
        await client.put(run_id, 0, make_samples([6, 7, 6]))
    assert await client.put(run_id, 0, make_samples([4, 5])) == 6


async def test_the_same_sample_ids_may_be_in_other_runs_and_episodes(client, run_id):
    for run, episode in ((run_id, 0), (run_id, 1), (f"{run_id}-b", 0)):
        await client.open_episode(run, episode, expected_samples=4, global_batch_size=4, micro_batch_size=4)
        assert await client.put(run, episode, make_samples(range(4)), request_id="same") == 4


async def test_a_fixed_episode_refuses_more_than_it_expects_and_says_use_dynamic(client, run_id):
    await open_fixed(client, run_id, 8)
    await client.put(run_id, 0, make_samples(range(6)))
    with pytest.raises(InvalidRequestError, match=r"fixed at 8 samples and has 6; 3 more.*stream_data_loader_type: dynamic"):
        await client.put(run_id, 0, make_samples(range(6, 9)))
    assert (await client.get_episode(run_id, 0)).stored == 6


async def test_a_fixed_episode_cannot_be_closed_with_fewer_and_says_use_dynamic(client, run_id):
    await open_fixed(client, run_id, 8)
    await client.put(run_id, 0, make_samples(range(6)))
    with pytest.raises(InvalidRequestError, match=r"fixed at 8 samples, but has 6.*stream_data_loader_type: dynamic"):
        await client.close_episode(run_id, 0)
    await client.put(run_id, 0, make_samples([6, 7]))
    assert await client.close_episode(run_id, 0) == (8, 1)
    assert await client.close_episode(run_id, 0) == (8, 1)


async def test_a_dynamic_episode_has_what_was_put_until_it_is_closed(client, run_id):
    await open_dynamic(client, run_id)
    await client.put(run_id, 0, make_samples(range(11)))
    assert await client.close_episode(run_id, 0) == (11, 2)
    with pytest.raises(ConflictError, match="closed with 11 samples"):
        await client.put(run_id, 0, make_samples([11]))


async def test_opening_again_returns_what_is_stored_and_other_sizes_are_a_conflict(client, run_id):
    sizes = {"expected_samples": 8, "global_batch_size": 8, "micro_batch_size": 4}
    assert await client.open_episode(run_id, 0, **sizes) == 0
    await client.put(run_id, 0, make_samples(range(4)))
    assert await client.open_episode(run_id, 0, **sizes) == 4
    others = {"expected_samples": 9}, {"micro_batch_size": 2}, {"relayed": True}, {"passes": 2}
    for other in ({"expected_samples": None}, *others):
        with pytest.raises(ConflictError, match=r"\[8, 8, 4, 0, 0, 1\]"):
            await client.open_episode(run_id, 0, **sizes | other)


async def test_an_episode_that_was_not_opened_is_not_found(client, run_id):
    calls = [
        client.put(run_id, 0, make_samples([1])),
        client.close_episode(run_id, 0),
        client.get_episode(run_id, 0),
        lease(client, run_id, 0),
    ]
    for call in calls:
        with pytest.raises(NotFoundError, match=f"no episode 0 of run {run_id}"):
            await call


async def test_puts_of_one_episode_must_have_the_same_columns(client, run_id):
    await open_dynamic(client, run_id)
    await client.put(run_id, 0, make_samples(range(4)))
    with pytest.raises(InvalidRequestError, match="reference_logprobs, rewards: "):
        await client.put(run_id, 0, replace(make_samples(range(4, 8)), rewards=None, reference_logprobs=None))


@pytest.mark.parametrize(
    ("method", "request_fields", "message"),
    [
        ("OpenEpisode", {"kind": 0, "global_batch_size": 4, "micro_batch_size": 4}, "kind is not set"),
        ("OpenEpisode", {"kind": 1, "global_batch_size": 4, "micro_batch_size": 4}, "expected_samples is 0"),
        ("OpenEpisode", {"kind": 2, "expected_samples": 3, "global_batch_size": 4, "micro_batch_size": 4}, "_samples is 3"),
        ("OpenEpisode", {"kind": 2, "global_batch_size": 5, "micro_batch_size": 4}, "train_global_batch_size"),
        ("OpenEpisode", {"kind": 2, "global_batch_size": 4}, "micro_batch_size 0"),
        ("OpenEpisode", {"episode_id": -1, "kind": 2}, "counted from 0"),
        ("OpenEpisode", {"run_id": "a}b", "kind": 2}, "run_id is 'a}b'"),
        ("Put", {"samples": {"size": 1, "sample_ids": ["a"], "policy_version_max": bytes(8)}}, "request_id is empty"),
        ("Put", {"request_id": "a", "samples": {"size": 1, "sample_ids": ["a"]}}, "samples: no policy version"),
        (
            "Put",
            {"request_id": "a", "samples": {"size": 1, "sample_ids": ["a"], "policy_version_max": b"\xff" * 8}},
            "sample a: no policy version",
        ),
        (
            "Put",
            {
                "request_id": "a",
                "samples": {
                    "size": 1,
                    "sample_ids": ["a"],
                    "policy_version_max": bytes(8),
                    "rewards": np.float32([np.nan]).tobytes(),
                    "reward_status": b"\1",
                },
            },
            "sample a: reward nan, but its status says that it is a value",
        ),
        ("Put", {"request_id": "a"}, "samples is empty"),
        ("Put", {"request_id": "a", "samples": {"size": 2, "sample_ids": ["a"]}}, "sample_ids has 1 rows"),
        ("Put", {"request_id": "a", "samples": {"size": 1, "sample_ids": ["a"], "rewards": b"12345678"}}, "rewards has 2"),
        ("Put", {"request_id": "a", "samples": {"size": 1, "sample_ids": ["a"], "rewards": b"123"}}, "no whole number"),
        ("Ack", {"lease_id": "step 3"}, "lease_id is 'step 3'"),
    ],
)
async def test_a_request_that_breaks_a_rule_is_refused_with_the_rule(client, run_id, method, request_fields, message):
    request = getattr(pb, f"{method}Request")(**{"run_id": run_id} | request_fields)
    with pytest.raises(InvalidRequestError, match=message):
        await (
            client._upload(method, lambda: [request.SerializeToString()])
            if method == "Put"
            else client._call(method, request)
        )


async def test_counts_follow_a_sample_from_stored_to_leased_to_trained(client, run_id):
    await open_fixed(client, run_id, 12, global_batch=8, micro_batch=4)
    await client.put(run_id, 0, make_samples([8, 9, 10, 11, 0, 1, 2, 3]))

    async def counts():
        found = await client.get_episode(run_id, 0)
        return found.stored, found.leased, found.trained, found.closed

    assert await counts() == (8, 0, 0, False)
    await lease(client, run_id, 0)
    assert await counts() == (8, 8, 0, False)
    await client.put(run_id, 0, make_samples([4, 5, 6, 7]))
    await client.close_episode(run_id, 0)
    await client.ack(run_id, 0, "p0-s0-a1", global_step=1)
    await lease(client, run_id, 1)
    assert await counts() == (12, 4, 8, True), "the tail's repeats count where the pass first used them"
    await client.ack(run_id, 0, "p0-s1-a1", global_step=2)
    assert await counts() == (12, 0, 12, True)
    await lease(client, run_id, 0, pass_index=1)
    assert await counts() == (12, 8, 0, True), "a new pass starts from nothing"


async def test_groups_are_listed_once_each_in_the_order_of_arrival(client, run_id):
    await open_dynamic(client, run_id)
    await client.put(run_id, 0, make_samples([20, 21, 0, 1, 22]))
    await client.put(run_id, 0, make_samples([40, 2, 80]))
    assert (await client.get_episode(run_id, 0)).group_ids == ["g5", "g0", "g10", "g20"]


async def test_an_episode_is_deleted_only_when_all_its_passes_are_trained(client, run_id):
    await open_dynamic(client, run_id)
    await client.put(run_id, 0, make_samples(range(16)))
    with pytest.raises(NotReadyError, match="still being rolled out"):
        await client.delete_episode(run_id, 0)
    await client.close_episode(run_id, 0)
    await train(client, run_id, 0)
    with pytest.raises(NotReadyError, match="1 of 2 steps of pass 0"):
        await client.delete_episode(run_id, 0)
    await train(client, run_id, 1)
    await lease(client, run_id, 0, pass_index=1)
    with pytest.raises(NotReadyError, match="0 of 2 steps of pass 1"):
        await client.delete_episode(run_id, 0)
    await train(client, run_id, 0, 1, pass_index=1)
    assert await client.delete_episode(run_id, 0) == 16
    assert await client.delete_episode(run_id, 0) == 0
    with pytest.raises(NotFoundError):
        await client.get_episode(run_id, 0)


async def test_an_empty_episode_can_be_deleted(client, run_id):
    await open_fixed(client, run_id, 8)
    assert await client.delete_episode(run_id, 0) == 0
    with pytest.raises(NotFoundError):
        await client.get_episode(run_id, 0)


async def test_deletion_leaves_no_key_behind(client, run_id, store):
    await open_fixed(client, run_id, 8)
    await client.put(run_id, 0, make_samples(range(8)), request_id="a")
    await client.close_episode(run_id, 0)
    await train(client, run_id, 0)
    assert len(store.keys(run_id)) == 10
    await client.delete_episode(run_id, 0)
    assert {name.rpartition(":")[2] for name in store.keys(run_id)} == {"ended", "global-steps", "usage"}


async def test_an_episode_that_was_trained_and_ended_cannot_be_opened_again(client, run_id):
    await open_fixed(client, run_id, 8)
    await client.put(run_id, 0, make_samples(range(8)))
    await client.close_episode(run_id, 0)
    await train(client, run_id, 0)
    await client.delete_episode(run_id, 0)
    with pytest.raises(ConflictError, match="trained and ended"):
        await open_fixed(client, run_id, 8)


async def test_an_episode_that_ended_empty_may_be_opened_again(client, run_id):
    for _ in range(2):
        await open_fixed(client, run_id, 8)
        await client.delete_episode(run_id, 0)
