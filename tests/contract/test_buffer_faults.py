"""What the buffer does when it or its store is killed, frozen, full or missing; tests/faults counts what is lost by that."""

import asyncio
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from buffer_samples import make_samples, numbers_of
from relay_runs import RelayRun
from store_servers import buffer_on

from baton.clients import BufferClient, LedgerClient
from baton.errors import BackpressureError, StoreUnavailableError
from baton.relay.builtins import last
from processes import ServiceProcess, StoreProcess, free_port

pytestmark = pytest.mark.slow

SIZES = {"expected_samples": 24, "global_batch_size": 8, "micro_batch_size": 2}


@pytest.fixture(scope="module")
def own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    """A store that these tests may kill; the next test finds it running again."""
    process = StoreProcess(tmp_path_factory.mktemp("own-store"))
    yield process
    process.kill()


@pytest.fixture(scope="module")
def own_buffer(
    own_store: StoreProcess, run_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    """A buffer on `own_store` that these tests may kill; it gives a silent store up after 5 s."""
    options = ["--store", own_store.url, "--set", "deadlines.store_s=5"]
    process = ServiceProcess("buffer", run_file, tmp_path_factory.mktemp("own-buffer"), *options)
    yield process
    process.kill()


@pytest.fixture
def both_run(own_store: StoreProcess, own_buffer: ServiceProcess) -> None:
    for process in (own_store, own_buffer):
        if process.popen is None or process.popen.poll() is not None:
            process.start()


async def lease_numbers(client: BufferClient, run_id: str, episode: int, step: int, **ranks: int) -> list[int]:
    found = client.lease(run_id, episode, pass_index=0, step_index=step, wait_s=60, **ranks)
    return [number async for micro_batch in found for number in numbers_of(micro_batch.samples)]


@pytest.mark.usefixtures("both_run")
async def test_ranks_that_read_one_chunk_at_once_after_a_restart_share_one_read(own_store, own_buffer, run_id):
    async with BufferClient(own_buffer.address, timeout_s=20) as client:
        await client.open_episode(run_id, 0, **SIZES)
        await client.put(run_id, 0, make_samples(range(8)))
        own_buffer.kill()
        await asyncio.to_thread(own_buffer.start)
        reads_before = own_store.calls("mget")
        shares = [lease_numbers(client, run_id, 0, 0, data_parallel_rank=rank, data_parallel_size=4) for rank in range(4)]
        assert await asyncio.gather(*shares) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert own_store.calls("mget") - reads_before == 1


@pytest.mark.usefixtures("both_run")
async def test_a_waiting_lease_survives_a_restart_of_the_buffer(own_buffer, run_id):
    async with BufferClient(own_buffer.address, timeout_s=20) as client:
        await client.open_episode(run_id, 0, **SIZES)
        waiting = asyncio.create_task(lease_numbers(client, run_id, 0, 0))
        await asyncio.sleep(0.2)
        own_buffer.kill()
        await asyncio.to_thread(own_buffer.start)
        await client.put(run_id, 0, make_samples(range(8)))
        assert await asyncio.wait_for(waiting, 60) == list(range(8))


@pytest.mark.usefixtures("both_run")
async def test_a_store_that_is_gone_is_a_clear_error_in_bounded_time_and_nothing_is_lost_when_it_is_back(
    own_store, own_buffer, run_id
):
    async with BufferClient(own_buffer.address, timeout_s=30) as client:
        await client.open_episode(run_id, 0, **SIZES)
        await client.put(run_id, 0, make_samples(range(8)), request_id="a")
        own_store.kill()
        began = time.monotonic()
        calls = [
            client.put(run_id, 0, make_samples(range(8, 16)), request_id="b", timeout_s=12),
            anext(aiter(client.lease(run_id, 0, pass_index=0, step_index=1, wait_s=20))),
            client.close_episode(run_id, 0),
        ]
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, StoreUnavailableError)
            assert all(named in str(error) for named in (own_store.url, "store.url", "deadlines.store_s"))
        assert 4 < time.monotonic() - began < 28

        await asyncio.to_thread(own_store.start)
        assert await client.put(run_id, 0, make_samples(range(8, 16)), request_id="b") == 16
        assert await lease_numbers(client, run_id, 0, 0) == list(range(8))


@pytest.mark.usefixtures("both_run")
async def test_a_store_that_is_back_within_seconds_goes_unnoticed(own_store, run_file, run_id, tmp_path):
    async with buffer_on(own_store.url, run_file, tmp_path) as client:
        await client.open_episode(run_id, 0, **SIZES)
        own_store.kill()
        put = asyncio.create_task(client.put(run_id, 0, make_samples(range(8))))
        await asyncio.sleep(0.5)
        await asyncio.to_thread(own_store.start)
        assert await put == 8


@pytest.mark.usefixtures("both_run")
async def test_a_store_that_stands_still_for_seconds_goes_unnoticed(own_store, run_file, run_id, tmp_path):
    """As one does that waits for a busy disk."""
    async with buffer_on(own_store.url, run_file, tmp_path) as client:
        await client.open_episode(run_id, 0, **SIZES)
        own_store.popen.send_signal(signal.SIGSTOP)
        try:
            opened = asyncio.create_task(client.open_episode(run_id, 1, **SIZES))
            put = asyncio.create_task(client.put(run_id, 0, make_samples(range(8))))
            await asyncio.sleep(12)
        finally:
            own_store.popen.send_signal(signal.SIGCONT)
        assert (await opened, await put) == (0, 8)


@pytest.mark.usefixtures("both_run")
async def test_a_store_that_hangs_is_a_clear_error_in_bounded_time(own_store, own_buffer, run_id):
    async with BufferClient(own_buffer.address, timeout_s=30) as client:
        await client.open_episode(run_id, 0, **SIZES)
        own_store.popen.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(StoreUnavailableError, match=own_store.url):
                await client.put(run_id, 0, make_samples(range(8)), request_id="a", timeout_s=20)
            assert time.monotonic() - began < 28
        finally:
            own_store.popen.send_signal(signal.SIGCONT)
        assert await client.put(run_id, 0, make_samples(range(8)), request_id="a") == 8


def start(run_file: Path, *options: str) -> subprocess.CompletedProcess:
    command = ServiceProcess("buffer", run_file, run_file.parent, *options).command
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_an_unreachable_store_ends_the_start_with_its_url_but_not_its_password(run_file):
    port = free_port()
    ended = start(run_file, "--store", f"redis://ann:secret@127.0.0.1:{port}/0", "--set", "deadlines.store_s=1")
    assert ended.returncode == 1
    assert f"redis://ann:***@127.0.0.1:{port}/0" in ended.stderr and "store.url" in ended.stderr
    assert "secret" not in ended.stderr and "Traceback" not in ended.stderr


def test_a_taken_port_ends_the_start_and_is_named(run_file, store):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ended = start(run_file, "--store", store.url, "--listen", f"127.0.0.1:{port}")
    assert ended.returncode == 1
    assert f"port {port} is taken" in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [((), "store.url: not set"), (("--store", "redis://host:port"), "store.url: got 'redis://host:port'")],
)
def test_a_store_that_is_not_named_ends_the_start(run_file, options, message):
    ended = start(run_file, *options)
    assert ended.returncode == 1
    assert message in ended.stderr and "Traceback" not in ended.stderr


def test_a_store_that_drops_keys_when_it_is_full_is_refused(run_file, tmp_path):
    store = StoreProcess(tmp_path)
    store.command += ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]
    try:
        ended = start(run_file, "--store", store.start().url)
    finally:
        store.kill()
    assert ended.returncode == 1
    assert "noeviction" in ended.stderr


def test_a_store_without_an_append_only_file_is_warned_about(run_file, tmp_path):
    store = StoreProcess(tmp_path)
    store.command += ["--appendonly", "no"]
    service = ServiceProcess("buffer", run_file, tmp_path, "--store", store.url)
    try:
        store.start()
        assert "append-only" in service.start().output()
    finally:
        service.kill()
        store.kill()


@pytest.fixture
def small(run_file: Path, tmp_path: Path) -> Iterator[tuple[StoreProcess, ServiceProcess]]:
    """A store of 8 MB, and a buffer on it."""
    store = StoreProcess(tmp_path)
    store.command += ["--maxmemory", "8mb", "--maxmemory-policy", "noeviction"]
    service = ServiceProcess("buffer", run_file, tmp_path, "--store", store.url)
    try:
        store.start()
        yield store, service.start()
    finally:
        service.kill()
        store.kill()


def fill(store: StoreProcess) -> None:
    """To a tenth of a MB more than it may have, whatever clients' buffers take."""
    with redis.Redis.from_url(store.url) as client, pytest.raises(redis.OutOfMemoryError):
        client.config_set("maxmemory", client.info("memory")["used_memory"] - 100_000)
        client.set("one", "more")


async def test_a_full_store_refuses_a_put_whole_and_says_so(small):
    async with BufferClient(small[1].address) as client:
        await client.open_episode("run", 0, expected_samples=None, global_batch_size=8, micro_batch_size=8)
        with pytest.raises(BackpressureError, match=r"store at .* is full.*maxmemory, or .* ended \(`baton relay rm RUN`"):
            for number in range(20):
                await client.put("run", 0, make_samples([number], tokens=50_000), timeout_s=5)
        assert (await client.get_episode("run", 0)).stored == number


@pytest.mark.parametrize("relayed", [False, True], ids=["plain", "relayed"])
async def test_a_full_store_lets_what_it_holds_be_trained_and_gives_room_by_that(small, relayed):
    """A put that waits for room must not wait for what waits for it."""
    store, service = small
    sizes = {"expected_samples": 8, "global_batch_size": 4, "micro_batch_size": 2, "relayed": relayed}
    async with RelayRun(service.address, "run") as run, LedgerClient(service.address) as ledger:
        for episode in range(2):
            await run.buffer.open_episode("run", episode, **sizes)
        await run.buffer.put("run", 0, make_samples(range(8), tokens=20_000))
        fill(store)
        waiting = asyncio.create_task(run.buffer.put("run", 1, make_samples(range(8, 16), tokens=5_000), timeout_s=60))
        await run.buffer.close_episode("run", 0)
        if relayed:
            assert await run.choose(0, last) == (8, 2)
        await run.lease(0, 0)
        await run.buffer.release_lease("run", 0, run.lease_id, reason="tried")
        await run.lease(0, 0)
        assert (await run.buffer.renew_lease("run", 0, run.lease_id))[0] == run.lease_id
        assert not waiting.done()
        await run.train(0, 2, 1)
        if relayed:
            assert await run.relay.trim_history("run", shown_from=1) == ([0], 0)
        assert await asyncio.wait_for(waiting, 60) == 8
        audit = await ledger.audit("run")
        assert (list(audit.faults), audit.ended_episodes, [one.episode_id for one in audit.episodes]) == ([], 1, [1])


@pytest.mark.parametrize("by", ["evicting", "rolling back", "removing a run"])
async def test_a_full_store_gives_room_by(small, by):
    store, service = small
    async with RelayRun(service.address, "run") as run, LedgerClient(service.address) as ledger:
        for episode in range(2):
            await run.roll_out(episode, make_samples(range(4 * episode, 4 * episode + 4), tokens=20_000))
            _, steps = await run.choose(episode, last)
            await run.train(episode, steps, episode + 1)
        fill(store)
        if by == "evicting":
            assert await run.relay.trim_history("run", keep_episodes=1) == ([0], 1)
        elif by == "rolling back":
            assert await ledger.roll_back("run", 1, 1) == 1
        else:
            assert await run.buffer.delete_run("run") == 2
        audit = await ledger.audit("run")
        assert (list(audit.faults), len(audit.episodes)) == ([], 0 if by == "removing a run" else 1)
        await run.roll_out(2, make_samples(range(8, 12)))
