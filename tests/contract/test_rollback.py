"""A run that goes back to a checkpoint between two episodes: what the ledger forgets, and what it keeps."""

from collections.abc import AsyncIterator

import pytest
import redis
from buffer_samples import make_samples, numbers_of
from relay_runs import RelayRun

from baton.clients import LedgerClient
from baton.errors import ConflictError, LeaseLostError
from baton.relay.builtins import concat
from processes import ServiceProcess, StoreProcess


@pytest.fixture
async def ledger(buffer: ServiceProcess) -> AsyncIterator[LedgerClient]:
    async with LedgerClient(buffer.address, timeout_s=20) as ledger:
        yield ledger


@pytest.fixture
async def run(buffer: ServiceProcess, run_id: str, ledger: LedgerClient) -> AsyncIterator[RelayRun]:
    """Checks after each test that the ledger's proof holds."""
    async with RelayRun(buffer.address, run_id) as run:
        yield run
        assert list((await ledger.audit(run_id)).faults) == []


def samples_of(episode: int):
    return make_samples(range(4 * episode, 4 * episode + 4))


async def whole(run: RelayRun, episode: int, first_global_step: int, **options) -> list[int]:
    """Rolls an episode of one step out, trains it and ends it; returns the numbers of what was trained."""
    steps = await run.roll_out(episode, samples_of(episode), **options)
    if options.get("relayed", True):
        _, steps = await run.choose(episode, concat)
    leased = await run.train(episode, steps, first_global_step)
    return [number for step in leased for share in step for batch in share for number in numbers_of(batch)]


async def interrupted(run: RelayRun, ledger: LedgerClient, relayed: bool) -> None:
    """Episodes 0 and 1 are in the checkpoint. Of those after it one has ended, one is trained but
    has not ended, and one is being rolled out."""
    first = {0: 1, 1: 2, 2: 4 if relayed else 3}  # relayed, episode 1 takes steps 2 and 3
    for episode, step in first.items():
        await whole(run, episode, step, relayed=relayed)
    await run.roll_out(3, samples_of(3), relayed=relayed)
    if relayed:
        await run.choose(3, lambda buffers: [sample.copy() for sample in buffers[-1].buffer])
    await run.lease(3, 0)
    await run.buffer.ack(run.run_id, 3, "p0-s0-a1", global_step=7 if relayed else 4)
    await run.buffer.open_episode(
        run.run_id, 4, expected_samples=None, global_batch_size=4, micro_batch_size=2, relayed=relayed
    )
    await ledger.issue_groups(run.run_id, 4, ["g16", "g17"], producer="before", timeout_s=600)
    await run.buffer.put(run.run_id, 4, make_samples(range(16, 18)), request_id="at 0")


@pytest.mark.parametrize("relayed", [False, True], ids=["plain", "relayed"])
async def test_later_episodes_are_forgotten_whatever_became_of_them_and_made_anew(
    run, ledger, store: StoreProcess, relayed: bool
) -> None:
    await interrupted(run, ledger, relayed)
    kept = 3 if relayed else 2  # optimizer steps of episodes 0 and 1
    for undone in (4 if relayed else 2, 0):  # relayed, episode 2 took three, as it trains two earlier ones again
        assert await ledger.roll_back(run.run_id, 2, kept) == undone
    audit = await ledger.audit(run.run_id)
    assert (list(audit.faults), audit.ended_episodes, audit.optimizer_steps) == ([], 2, kept)
    assert [one.episode_id for one in audit.episodes] == ([0, 1] if relayed else [])
    names = [key.partition("}:")[2] for key in store.keys(run.run_id)]
    assert not [name for name in names if name.startswith(("episode:2", "episode:3", "episode:4"))]
    assert len([name for name in names if name.startswith("chunk:")]) == (2 if relayed else 0)
    step = kept + 1
    for episode in (2, 3, 4):  # under the same names
        trained = await whole(run, episode, step, relayed=relayed)
        step += len(trained) // 4
        assert sorted(trained) == list(range(0 if relayed else 4 * episode, 4 * episode + 4))
    audit = await ledger.audit(run.run_id)
    assert (audit.ended_episodes, list(audit.dead), list(audit.untrained)) == (5, [], [])


async def test_a_lease_of_before_is_no_lease_of_after_though_its_step_has_the_same_name(run, ledger) -> None:
    for number, lease_id in enumerate(["p0-s0-a1", "p0-s0-a2", "p0-s0-a3"]):
        await run.roll_out(0, samples_of(0), relayed=False)
        await run.lease(0, 0)
        assert run.lease_id == lease_id, "none is given twice"
        for before in range(1, number + 1):  # a trainer that was thought to be dead goes on
            with pytest.raises(LeaseLostError, match="was leased again since"):
                await run.buffer.ack(run.run_id, 0, f"p0-s0-a{before}", global_step=1)
        await run.buffer.ack(run.run_id, 0, lease_id, global_step=1)
        assert await run.buffer.delete_episode(run.run_id, 0) == 4
        if number < 2:
            assert await ledger.roll_back(run.run_id, 0, 0) == 1


async def test_an_episode_of_the_history_cannot_be_opened_again(run) -> None:
    await whole(run, 0, 1)
    with pytest.raises(ConflictError, match="was trained and ended, and would be trained twice"):
        await run.roll_out(0, samples_of(0))


async def test_a_position_that_is_not_between_two_episodes_is_refused_and_nothing_is_forgotten(run, ledger) -> None:
    for episode in range(3):
        await whole(run, episode, episode + 1, relayed=False)
    with pytest.raises(ConflictError, match=r"optimizer step 2, before episode 3: optimizer step 3 trained episode 2 p0-s0"):
        await ledger.roll_back(run.run_id, 3, 2)
    with pytest.raises(ConflictError, match=r"optimizer step 2, before episode 1: optimizer step 2 trained episode 1 p0-s0"):
        await ledger.roll_back(run.run_id, 1, 2)
    assert (await ledger.audit(run.run_id)).optimizer_steps == 3


async def test_history_that_a_checkpoint_still_needs_is_spared_and_not_shown(run) -> None:
    for episode in range(4):
        await whole(run, episode, 1 + sum(range(1, episode + 1)))
    trimmed = await run.relay.trim_history(run.run_id, keep_episodes=1, spared=[range(1, 2)])
    assert trimmed == ([0, 2], 1)
    assert [one.episode_id for one in await run.relay.list_history(run.run_id)] == [1, 3]
    assert (await run.relay.trim_history(run.run_id, shown_from=2, spared=[range(1, 2)])) == ([], 1)
    assert (await run.relay.trim_history(run.run_id, keep_episodes=1)) == ([1], 1)


@pytest.mark.parametrize("relayed", [False, True], ids=["plain", "relayed"])
async def test_a_run_that_is_removed_leaves_nothing_and_takes_nothing_of_others_along(
    ledger, buffer: ServiceProcess, store: StoreProcess, run_id: str, relayed: bool
) -> None:
    async with RelayRun(buffer.address, f"{run_id}[ab]*") as run, RelayRun(buffer.address, f"{run_id}a") as other:
        for one in (run, other):
            await interrupted(one, ledger, relayed)
            await ledger.put_state(one.run_id, "coordinator", b"{}", expected_revision=0)
        with redis.Redis.from_url(store.url) as client:
            client.set(f"baton:{{{run.run_id}}}:chunk:00ff", "left over")
        kept = store.keys(other.run_id)
        assert await run.buffer.delete_run(run.run_id) == (5 if relayed else 2)
        with redis.Redis.from_url(store.url) as client:
            keys = [key.decode() for key in client.scan_iter(count=10_000)]
        assert [key for key in keys if run.run_id in key] == []
        assert store.keys(other.run_id) == kept
        assert await run.buffer.delete_run(run.run_id) == 0
        await whole(run, 0, 1, relayed=relayed)  # as a run of its own
        assert list((await ledger.audit(run.run_id)).faults) == []
