"""The ledger over real gRPC and a real store: prompt groups, checkpoints, small state, what can be asked."""

from collections.abc import AsyncIterator

import pytest

from baton.clients import LedgerClient
from baton.errors import ConflictError, InvalidRequestError
from processes import ServiceProcess


@pytest.fixture
async def client(buffer: ServiceProcess) -> AsyncIterator[LedgerClient]:
    async with LedgerClient(buffer.address, timeout_s=20) as client:
        yield client


async def test_state_is_changed_only_by_who_read_the_present_revision(client, run_id):
    assert await client.get_state(run_id, "coordinator") == (b"", 0)
    assert await client.put_state(run_id, "coordinator", b"one", expected_revision=0) == 1
    assert await client.put_state(run_id, "coordinator", b"two\0\xff", expected_revision=1) == 2
    with pytest.raises(ConflictError, match=r"at revision 2, not 1"):
        await client.put_state(run_id, "coordinator", b"three", expected_revision=1)
    with pytest.raises(ConflictError, match=r"at revision 2, not 0"):
        await client.put_state(run_id, "coordinator", b"three", expected_revision=0)
    assert await client.get_state(run_id, "coordinator") == (b"two\0\xff", 2)
    assert await client.get_state(run_id, "other") == (b"", 0)


async def test_a_repeated_write_of_state_is_answered_as_the_first_was(client, run_id):
    for _ in range(2):
        assert await client.put_state(run_id, "coordinator", bytes(2**20), expected_revision=0) == 1
    assert await client.get_state(run_id, "coordinator") == (bytes(2**20), 1)


@pytest.mark.parametrize(
    ("name", "value", "message"), [("", b"x", "name is empty"), ("a", bytes(2**20 + 1), "at most 1048576")]
)
async def test_state_that_has_no_name_or_is_too_large_is_refused(client, run_id, name, value, message):
    with pytest.raises(InvalidRequestError, match=message):
        await client.put_state(run_id, name, value, expected_revision=0)
