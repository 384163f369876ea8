"""`baton relay rm`: the command as a process, asking a real buffer over a real store."""

import re

import pytest
from buffer_samples import make_samples
from cli_process import Place
from relay_runs import RelayRun

from baton.clients import LedgerClient
from baton.relay.builtins import concat
from services.coordinator.state import STATE_NAME, Life, RunState

pytestmark = pytest.mark.slow


@pytest.fixture
def rm(tmp_path, buffer, run_id):
    """Runs `baton relay rm RUN OPTIONS` against the shared buffer."""
    place = Place(tmp_path, stand_ins=False)
    return lambda *options: place.baton("relay", "rm", run_id, *options, "--buffer", buffer.address)


async def put_history(address: str, run_id: str) -> None:
    """Episode 0: trained and kept. Episode 1: rolled out."""
    async with RelayRun(address, run_id) as run:
        await run.roll_out(0, make_samples(range(4)))
        _, steps = await run.choose(0, concat)
        await run.train(0, steps, 0)
        await run.roll_out(1, make_samples(range(4, 8)))


async def keep_state(address: str, run_id: str, life: Life) -> None:
    """As the run's coordinator does."""
    state = RunState(run_id, 3, "runs/a", life=life, episode=2)
    async with LedgerClient(address, timeout_s=20) as ledger:
        await ledger.put_state(run_id, STATE_NAME, state.to_json(), expected_revision=0)


async def test_it_removes_all_that_a_run_has_in_the_store(rm, buffer, store, run_id):
    await put_history(buffer.address, run_id)
    await keep_state(buffer.address, run_id, Life.FAILED)
    removed = rm()
    assert removed.returncode == 0, removed.stderr
    assert re.fullmatch(rf"run {run_id} is removed from the store: 2 episodes, 8 samples, [\d.]+ kB\n", removed.stdout)
    assert store.keys(run_id) == []
    again = rm()
    assert (again.returncode, again.stdout) == (1, "")
    assert f"holds no episode of a run '{run_id}'" in again.stderr


async def test_it_removes_what_is_left_of_a_run_whose_samples_are_all_freed(rm, buffer, store, run_id):
    await keep_state(buffer.address, run_id, Life.SUCCEEDED)
    assert rm().returncode == 0
    assert store.keys(run_id) == []


@pytest.mark.parametrize("life", [Life.STARTING, Life.RUNNING, Life.STOPPING])
async def test_it_refuses_a_run_that_lives_unless_it_is_forced(rm, buffer, store, run_id, life):
    await put_history(buffer.address, run_id)
    await keep_state(buffer.address, run_id, life)
    refused = rm()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"run {run_id} is {life}, in episode 2 of 3" in refused.stderr and "--force" in refused.stderr
    assert store.keys(run_id)
    assert rm("--force").returncode == 0
    assert store.keys(run_id) == []
