"""Who holds a step: one lessee at a time, for a time, and not for ever again."""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import redis
from buffer_samples import make_samples

from baton.clients import BufferClient, LedgerClient
from baton.errors import DeadLetterError, DeadlineError, InvalidRequestError, LeaseLostError
from processes import ServiceProcess, StoreProcess

SIZES = {"expected_samples": None, "global_batch_size": 8, "micro_batch_size": 4}


@pytest.fixture(scope="module")
def hasty(store: StoreProcess, run_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A buffer that gives a step up after two attempts. Its leases last a minute, or until a test ends them."""
    options = ("--store", store.url, "--set", "store.lease_timeout_s=60", "--set", "store.max_attempts=2")
    process = ServiceProcess("buffer", run_file, tmp_path_factory.mktemp("hasty"), *options)
    yield process.start()
    process.kill()


@pytest.fixture
async def hurried(hasty: ServiceProcess) -> AsyncIterator[BufferClient]:
    async with BufferClient(hasty.address, timeout_s=20) as client:
        yield client


@pytest.fixture
def end_lease(store: StoreProcess, run_id: str) -> Callable[..., float]:
    """Ends the lease of a step of episode 0: its time was over a second ago, or is over in `in_s`. Returns when."""

    def end(step: int = 0, in_s: float = -1.0) -> float:
        key, name = f"baton:{{{run_id}}}:episode:0:steps", f"p0-s{step}"
        with redis.Redis.from_url(store.url) as data:
            state, attempt, _, term, lessee = data.hget(key, name).decode().split(" ", 4)
            ends = time.time() + in_s
            data.hset(key, name, f"{state} {attempt} {ends - float(term):.3f} {term} {lessee}")
        return ends

    return end


async def lease_as(client: BufferClient, run_id: str, lessee: str | None, step: int = 0, wait_s: float = 5.0) -> str:
    """The lease id that this lessee gets."""
    found = client.lease(run_id, 0, pass_index=0, step_index=step, lessee=lessee, wait_s=wait_s)
    batches = [batch async for batch in found]
    return batches[0].lease_id


async def test_a_step_that_another_lessee_holds_is_waited_for_until_its_lease_ends(hurried, run_id, end_lease):
    await hurried.open_episode(run_id, 0, **SIZES)
    await hurried.put(run_id, 0, make_samples(range(16)))
    assert await lease_as(hurried, run_id, "one") == await lease_as(hurried, run_id, "one") == "p0-s0-a1"
    with pytest.raises(DeadlineError, match=r"p0-s0 of .* is leased by one for [1-6]\d s more, and 0 s were not enough"):
        await lease_as(hurried, run_id, "two", wait_s=0)
    ends = end_lease(in_s=1.0)
    assert await lease_as(hurried, run_id, "two", wait_s=30) == "p0-s0-a2"
    assert -0.1 < time.time() - ends < 20


async def test_only_who_holds_the_lease_may_acknowledge_it_and_a_refusal_changes_nothing(hurried, run_id, end_lease):
    await hurried.open_episode(run_id, 0, **SIZES)
    await hurried.put(run_id, 0, make_samples(range(16)))
    first = await lease_as(hurried, run_id, "one")
    end_lease()
    second = await lease_as(hurried, run_id, "two")
    with pytest.raises(LeaseLostError, match=r"p0-s0-a1 of .* was leased again since, as attempt 2, by two"):
        await hurried.ack(run_id, 0, first, global_step=1)
    assert (await hurried.get_episode(run_id, 0)).trained == 0
    assert await hurried.ack(run_id, 0, second, global_step=1) == 1


async def test_only_the_attempt_that_was_acknowledged_may_acknowledge_the_step_again(hurried, run_id, end_lease):
    await hurried.open_episode(run_id, 0, **SIZES)
    await hurried.put(run_id, 0, make_samples(range(16)))
    first = await lease_as(hurried, run_id, "one")
    end_lease()
    second = await lease_as(hurried, run_id, "two")
    for _ in range(2):
        assert await hurried.ack(run_id, 0, second, global_step=1) == 1
    for global_step in (1, 2):  # as far as the first one knows, its optimizer step has either number
        with pytest.raises(LeaseLostError, match=r"p0-s0-a1 of .* was leased again since, and attempt 2 trained it"):
            await hurried.ack(run_id, 0, first, global_step=global_step)
    assert await hurried.ack(run_id, 0, second, global_step=1) == 1


async def test_clients_that_give_no_name_are_different_lessees(hurried, hasty, run_id, end_lease):
    await hurried.open_episode(run_id, 0, **SIZES)
    await hurried.put(run_id, 0, make_samples(range(16)))
    lease_id = await lease_as(hurried, run_id, None)
    assert await lease_as(hurried, run_id, None) == lease_id == "p0-s0-a1"
    end_lease()
    async with BufferClient(hasty.address, timeout_s=20) as other:
        assert (await lease_as(other, run_id, None, wait_s=5)) == "p0-s0-a2"
        with pytest.raises(LeaseLostError, match="as attempt 2"):
            await hurried.renew_lease(run_id, 0, lease_id)


async def test_a_lessee_without_a_name_is_refused(hurried, run_id):
    await hurried.open_episode(run_id, 0, **SIZES)
    await hurried.put(run_id, 0, make_samples(range(16)))
    with pytest.raises(InvalidRequestError, match="lessee is empty"):
        await lease_as(hurried, run_id, "")
    lease_id = await lease_as(hurried, run_id, None)
    with pytest.raises(InvalidRequestError, match="lessee is empty"):
        await hurried.renew_lease(run_id, 0, lease_id, lessee="")


async def test_an_expired_lease_can_be_renewed_but_not_acknowledged(hurried, run_id, end_lease):
    await hurried.open_episode(run_id, 0, **SIZES)
    await hurried.put(run_id, 0, make_samples(range(16)))
    lease_id = await lease_as(hurried, run_id, "one")
    end_lease()
    with pytest.raises(LeaseLostError, match=r"expired \d+\.\d s ago; renew it first"):
        await hurried.ack(run_id, 0, lease_id, global_step=1)
    with pytest.raises(LeaseLostError, match="by one"):
        await hurried.renew_lease(run_id, 0, lease_id, lessee="two")
    renewed, timeout_s = await hurried.renew_lease(run_id, 0, lease_id, lessee="one")
    assert timeout_s == 60
    assert await hurried.ack(run_id, 0, renewed, global_step=1) == 1


async def test_a_step_that_is_released_can_be_leased_at_once(hurried, run_id):
    await hurried.open_episode(run_id, 0, **SIZES)
    await hurried.put(run_id, 0, make_samples(range(16)))
    await hurried.release_lease(run_id, 0, await lease_as(hurried, run_id, "one"), reason="no room")
    assert await lease_as(hurried, run_id, "two", wait_s=0) == "p0-s0-a2"


async def test_a_step_that_was_given_up_and_is_trained_after_all_is_no_dead_letter(hurried, hasty, run_id, end_lease):
    await hurried.open_episode(run_id, 0, **SIZES)
    await hurried.put(run_id, 0, make_samples(range(16)))
    for lessee in ("one", "two"):
        lease_id = await lease_as(hurried, run_id, lessee)
        end_lease()
    with pytest.raises(DeadLetterError, match="never acknowledged in time; last by two"):
        await lease_as(hurried, run_id, "three")
    async with LedgerClient(hasty.address, timeout_s=20) as ledger:
        assert len((await ledger.audit(run_id)).dead) == 1
        lease_id, _ = await hurried.renew_lease(run_id, 0, lease_id, lessee="two")  # it was slow, not dead
        await hurried.ack(run_id, 0, lease_id, global_step=1)
        assert list((await ledger.audit(run_id)).dead) == []


async def test_a_step_is_given_up_after_so_many_attempts_with_the_last_reason(hurried, hasty, run_id, end_lease):
    await hurried.open_episode(run_id, 0, **SIZES)
    await hurried.put(run_id, 0, make_samples(range(16)))
    for lessee in ("one", "two"):
        await hurried.release_lease(run_id, 0, await lease_as(hurried, run_id, lessee), reason=f"{lessee} ran out of memory")
    await lease_as(hurried, run_id, "one", step=1)
    end_lease(step=1)
    await lease_as(hurried, run_id, "two", step=1)
    end_lease(step=1)
    with pytest.raises(DeadLetterError, match=r"p0-s0 of .* was given up after 2 attempts: two ran out of memory"):
        await lease_as(hurried, run_id, "three")
    with pytest.raises(LeaseLostError, match=r"as attempt 2, by somebody"):
        await hurried.release_lease(run_id, 0, "p0-s0-a1", reason="late")
    with pytest.raises(DeadLetterError, match="leased 2 times, and never acknowledged in time; last by two"):
        await lease_as(hurried, run_id, "three", step=1)
    async with LedgerClient(hasty.address, timeout_s=20) as ledger:
        assert (await ledger.audit(run_id)).dead == [
            "episode 0 step p0-s0: two ran out of memory",
            "episode 0 step p0-s1: leased 2 times, and never acknowledged in time; last by two",
        ]


async def test_ranks_of_one_lessee_that_lease_around_an_expiry_train_the_step_once(hurried, run_id, end_lease):
    await hurried.open_episode(run_id, 0, **SIZES)
    await hurried.put(run_id, 0, make_samples(range(8)))

    async def rank(number: int) -> str:
        share = {"data_parallel_rank": number, "data_parallel_size": 2, "lessee": "one"}
        [lease_id] = {batch.lease_id async for batch in hurried.lease(run_id, 0, pass_index=0, step_index=0, **share)}
        return lease_id

    early = await rank(0)
    end_lease()
    late = await rank(1)
    assert (early, late) == ("p0-s0-a1", "p0-s0-a2")
    with pytest.raises(LeaseLostError, match="as attempt 2, by one"):
        await hurried.ack(run_id, 0, early, global_step=1)
    with pytest.raises(LeaseLostError, match="as attempt 2, by one"):
        await hurried.renew_lease(run_id, 0, early, lessee="another")
    assert (await hurried.renew_lease(run_id, 0, early, lessee="one"))[0] == late, "as the trainer does, for all its ranks"
    assert await hurried.ack(run_id, 0, late, global_step=1) == 1
