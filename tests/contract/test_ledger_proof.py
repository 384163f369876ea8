"""What the ledger refuses to forget: prompt groups that were never put, passes that were never trained, ended episodes."""

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from buffer_samples import make_samples

from baton.clients import BufferClient, LedgerClient, RelayClient
from baton.errors import BackpressureError, ConflictError, InvalidRequestError, NotReadyError
from processes import ServiceProcess, StoreProcess

SIZES = {"expected_samples": None, "global_batch_size": 4, "micro_batch_size": 2}
ISSUE = {"producer": "one", "timeout_s": 60}


@pytest.fixture
async def clients(buffer: ServiceProcess) -> AsyncIterator[tuple[BufferClient, LedgerClient]]:
    async with BufferClient(buffer.address, timeout_s=20) as client, LedgerClient(buffer.address, timeout_s=20) as ledger:
        yield client, ledger


async def train(buffer: BufferClient, run_id: str, global_step: int, *, pass_index: int = 0, step_index: int = 0) -> None:
    batches = [batch async for batch in buffer.lease(run_id, 0, pass_index=pass_index, step_index=step_index)]
    await buffer.ack(run_id, 0, batches[0].lease_id, global_step=global_step)


async def test_the_proof_tells_groups_that_were_issued_and_never_put_before_and_after_the_end(clients, run_id):
    buffer, ledger = clients
    await buffer.open_episode(run_id, 0, **SIZES)
    await ledger.issue_groups(run_id, 0, ["g0", "lost", "made", "dropped"], **ISSUE)
    await ledger.report_groups(run_id, 0, ["g0", "made"], producer="one")
    await ledger.report_groups(run_id, 0, ["dropped"], producer="one", failure="all rewards are equal")
    await buffer.put(run_id, 0, make_samples(range(4)))
    assert list((await ledger.audit(run_id)).faults) == [], "they may still come"
    await buffer.close_episode(run_id, 0)
    audit = await ledger.audit(run_id)
    where = f"of episode 0 of run {run_id}"
    assert list(audit.faults) == [
        f"group lost {where} was issued (attempt 1, one) and never put",
        f"group made {where} was generated (attempt 1, one) and never put",
    ]
    assert list(audit.dead) == ["episode 0 group dropped: all rewards are equal"]
    await train(buffer, run_id, 1)
    await buffer.delete_episode(run_id, 0)
    audit = await ledger.audit(run_id)
    assert list(audit.faults) == [f"2 prompt groups {where} were issued and never put"]
    assert list(audit.dead) == ["1 prompt groups of episode 0 gave no samples"]


async def test_an_episode_does_not_end_before_all_the_passes_that_it_was_opened_for(clients, run_id):
    buffer, _ = clients
    await buffer.open_episode(run_id, 0, **SIZES, passes=2)
    await buffer.put(run_id, 0, make_samples(range(4)))
    await buffer.close_episode(run_id, 0)
    await train(buffer, run_id, 1)
    with pytest.raises(NotReadyError, match="0 of 1 steps of pass 1 acknowledged"):
        await buffer.delete_episode(run_id, 0)
    await train(buffer, run_id, 2, pass_index=1)
    assert await buffer.delete_episode(run_id, 0) == 4


async def test_an_episode_does_not_end_before_every_step_of_its_earlier_passes_is_trained_too(clients, run_id):
    buffer, ledger = clients
    await buffer.open_episode(run_id, 0, **SIZES)
    await buffer.put(run_id, 0, make_samples(range(8)))
    await buffer.close_episode(run_id, 0)
    for global_step, (pass_index, step_index) in enumerate([(0, 0), (1, 0), (1, 1)]):
        await train(buffer, run_id, global_step, pass_index=pass_index, step_index=step_index)
    with pytest.raises(NotReadyError, match="1 of 2 steps of pass 0 acknowledged"):
        await buffer.delete_episode(run_id, 0)
    await train(buffer, run_id, 3, step_index=1)
    assert await buffer.delete_episode(run_id, 0) == 8
    assert list((await ledger.audit(run_id)).faults) == []


async def test_a_pass_that_an_episode_was_not_opened_for_cannot_be_leased(clients, run_id):
    buffer, _ = clients
    await buffer.open_episode(run_id, 0, **SIZES, passes=2)
    await buffer.put(run_id, 0, make_samples(range(4)))
    await buffer.close_episode(run_id, 0)
    with pytest.raises(InvalidRequestError, match=r"pass_index is 7, but episode 0 of .* was opened for 2 passes, from 0"):
        await train(buffer, run_id, 1, pass_index=7)
    for pass_index in range(2):
        await train(buffer, run_id, pass_index, pass_index=pass_index)
    assert await buffer.delete_episode(run_id, 0) == 4


async def test_the_proof_tells_passes_that_are_not_trained_once_it_is_known_that_they_are_due(clients, run_id):
    async def untrained() -> list[str]:
        audit = await ledger.audit(run_id)
        assert list(audit.faults) == []
        return [line.replace(f" of episode 0 of run {run_id}:", ":") for line in audit.untrained]

    buffer, ledger = clients
    await buffer.open_episode(run_id, 0, **SIZES, passes=3)
    await buffer.put(run_id, 0, make_samples(range(4)))
    assert await untrained() == [f"episode 0 of run {run_id} is open: 0 prompt groups are issued, 4 samples are stored"]
    await buffer.close_episode(run_id, 0)
    missing = [f"pass {number}: 0 of 1 steps are trained" for number in range(3)]
    for number in range(3):
        assert await untrained() == missing[number:]
        await train(buffer, run_id, number, pass_index=number)
    assert await untrained() == []
    await buffer.delete_episode(run_id, 0)
    assert await untrained() == []


async def test_the_proof_tells_an_episode_that_is_open_and_one_whose_training_set_was_never_chosen(clients, run_id):
    buffer, ledger = clients
    await buffer.open_episode(run_id, 0, **SIZES, relayed=True, passes=2)
    await ledger.issue_groups(run_id, 0, ["g0", "issued", "failed"], **ISSUE)
    await ledger.report_groups(run_id, 0, ["failed"], producer="one", failure="all rewards are equal")
    await buffer.put(run_id, 0, make_samples(range(4)))
    where = f"episode 0 of run {run_id}"
    told = list((await ledger.audit(run_id)).untrained)
    assert told == [f"{where} is open: 1 prompt groups are issued, 4 samples are stored"]
    await buffer.close_episode(run_id, 0)
    told = list((await ledger.audit(run_id)).untrained)
    assert told == [f"pass {number} of {where}: its training set was not chosen" for number in range(2)]


async def test_a_trainer_cannot_go_back_behind_an_episode_that_ended(clients, run_id):
    buffer, ledger = clients
    await buffer.open_episode(run_id, 0, **SIZES)
    await buffer.put(run_id, 0, make_samples(range(4)))
    await buffer.close_episode(run_id, 0)
    await train(buffer, run_id, 7)
    await buffer.delete_episode(run_id, 0)
    with pytest.raises(ConflictError, match=r"episode 0 of .* ended, and its p0-s0 was trained by optimizer step 7"):
        await ledger.rewind_trained(run_id, 6)
    assert await ledger.rewind_trained(run_id, 7) == 0


async def test_samples_that_a_relay_function_made_keep_within_the_budgets(
    store: StoreProcess, run_file: Path, tmp_path: Path, run_id: str
):
    process = ServiceProcess("buffer", run_file, tmp_path, "--store", store.url, "--set", "store.max_samples=6")
    process.start()
    try:
        async with BufferClient(process.address) as buffer, RelayClient(process.address, timeout_s=3) as relay:
            await buffer.open_episode(run_id, 0, **SIZES, relayed=True)
            await buffer.put(run_id, 0, make_samples(range(4)))
            await buffer.close_episode(run_id, 0)
            references = np.array([(-1, place) for place in range(3)])
            with pytest.raises(BackpressureError, match=r"has 4 samples, .* made, 3 samples, .* exceeds store.max_samples"):
                await relay.select(run_id, 0, references, make_samples(range(100, 103)))
            assert await relay.select(run_id, 0, references[:2], make_samples(range(100, 102))) == (2, 1)
    finally:
        process.kill()


async def test_columns_of_much_metadata_come_in_messages_that_grpc_takes(clients, buffer, run_id):
    client, _ = clients
    await client.open_episode(run_id, 0, **SIZES, relayed=True)
    for number in range(3):
        samples = make_samples([number])
        samples.metadata[0] = "x" * (2 * 2**20 - 2**16)
        await client.put(run_id, 0, samples)
    await client.close_episode(run_id, 0)
    async with RelayClient(buffer.address) as relay:
        parts = await relay.read_columns(run_id, 0, ["metadata"])
    assert [len(text) for part in parts for text in part.metadata] == [2 * 2**20 - 2**16] * 3
