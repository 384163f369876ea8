"""How much one put may bring, and what happens beyond."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import numpy as np
import pytest
import redis
from buffer_samples import make_samples

from baton import bulk
from baton.api.buffer.v1 import buffer_pb2 as pb
from baton.bulk import Encoded
from baton.clients.buffer import BufferClient
from baton.errors import ConflictError, InvalidRequestError
from baton.samples import Ragged, Samples
from processes import ServiceProcess


@pytest.fixture
async def client(buffer: ServiceProcess) -> AsyncIterator[BufferClient]:
    async with BufferClient(buffer.address, timeout_s=20) as client:
        yield client


async def open_dynamic(client: BufferClient, run_id: str, *, global_batch: int = 8, micro_batch: int = 4) -> None:
    await client.open_episode(run_id, 0, expected_samples=None, global_batch_size=global_batch, micro_batch_size=micro_batch)


@pytest.mark.parametrize(
    ("samples", "tokens", "message"),
    [
        (1, 5 * 2**28, r"sample s0 takes 5368\d+ bytes, more than the 3145728"),
        (500, 2**18, r"group g0 takes 524\d+ bytes, more than the 268435456"),
        (5 * 2**10, 2**18, r"put of all samples takes 5368\d+ bytes, more than the 1073741824"),
    ],
    ids=["a sample of 5 GiB", "a group of 500 MiB", "5 GiB of samples"],
)
async def test_a_put_of_gigabytes_is_refused_before_anything_is_sent(client, run_id, samples, tokens, message):
    await open_dynamic(client, run_id)
    lengths = np.full(samples, tokens, np.uint32)
    huge = Samples(
        sample_ids=[f"s{number}" for number in range(samples)],
        group_ids=["g0"] * samples if samples == 500 else None,
        response_ids=Ragged(np.broadcast_to(np.int32(7), samples * tokens), lengths),  # takes no memory here
        policy_version_max=np.ones(samples, np.int64),
    )
    with pytest.raises(InvalidRequestError, match=message):
        await client.put(run_id, 0, huge)
    assert (await client.get_episode(run_id, 0)).stored == 0


async def test_a_message_beyond_the_limit_of_grpc_is_refused_and_stores_nothing(client, run_id):
    await open_dynamic(client, run_id)
    request = pb.PutRequest(run_id=run_id, request_id="a", samples=make_samples([0], tokens=2**20).to_proto())
    with pytest.raises(InvalidRequestError, match="larger than max"):
        await client._upload("Put", lambda: [request.SerializeToString()])
    assert (await client.get_episode(run_id, 0)).stored == 0


async def test_a_put_of_thousands_of_samples_is_accepted(client, run_id):
    await open_dynamic(client, run_id, global_batch=9_000, micro_batch=9_000)

    def bare(ids: list[str]) -> Samples:
        return Samples(sample_ids=ids, policy_version_max=np.ones(len(ids), np.int64))

    assert await client.put(run_id, 0, bare([f"s{number}" for number in range(9_000)])) == 9_000
    for last in ("s0", "s8999"):  # one that is compared late with one that was stored early, and late
        others = [f"t{number}" for number in range(1_999)]
        with pytest.raises(ConflictError, match=rf"sample {last} already"):
            await client.put(run_id, 0, bare([*others, last]))


async def test_a_put_that_is_refused_at_its_first_message_says_why_however_much_was_to_follow(client, run_id, store):
    await open_dynamic(client, run_id)
    many = make_samples(range(64), tokens=2**16)
    one_group = replace(many, group_ids=["g"] * 64, policy_version_max=np.full(64, -1))
    for _ in range(5):
        with pytest.raises(InvalidRequestError, match="sample s0: no policy version"):
            await client.put(run_id, 0, one_group)
    last_is_bad = replace(one_group, policy_version_max=np.r_[np.ones(63, np.int64), -1])
    with pytest.raises(InvalidRequestError, match="sample s63: no policy version"):
        await client.put(run_id, 0, last_is_bad)
    assert (await client.get_episode(run_id, 0)).stored == 0
    with redis.Redis.from_url(store.url) as raw:
        assert not list(raw.scan_iter(f"baton:{{{run_id}}}:chunk:*")), "what came before the bad one is taken back"


async def test_a_request_of_gigabytes_is_refused_by_the_service_too_and_leaves_nothing(client, run_id, store):
    await open_dynamic(client, run_id)
    part = make_samples([0], tokens=200_000)
    sent = 0

    def without_end() -> Iterator[bytes]:
        nonlocal sent
        head = pb.PutRequest(run_id=run_id, request_id="a")
        for number in range(5 * 2**30 // 2**21):
            sent += 1
            yield bulk.serialized(head, Encoded.of(replace(part, sample_ids=[f"s{number}"])))

    with pytest.raises(InvalidRequestError, match="more than 268435456 bytes"):
        await client._upload("Put", without_end)
    assert sent < 1000, "the rest was not sent"
    assert (await client.get_episode(run_id, 0)).stored == 0
    with redis.Redis.from_url(store.url) as raw:
        assert not list(raw.scan_iter(f"baton:{{{run_id}}}:chunk:*"))
