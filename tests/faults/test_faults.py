"""Nothing is lost and nothing is trained twice, whatever dies, comes twice, comes late, or tells another time."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from clocks import LIBRARY, Clock, ClockedStore, stop
from fault_stream import KILLS, Stream
from stream_plan import LEASE_TIMEOUT_S

from baton.config.services import StoreConfig
from processes import ServiceProcess, StoreProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

OPTIONS = (f"store.lease_timeout_s={LEASE_TIMEOUT_S}", "store.max_attempts=1000", "store.max_samples=3000")


def buffer_on(store: StoreProcess, run_file: Path, directory: Path) -> ServiceProcess:
    settings = (part for option in OPTIONS for part in ("--set", option))
    return ServiceProcess("buffer", run_file, directory, "--store", store.url, *settings)


@pytest.fixture(scope="module")
def own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    """With the append-only file as the product sets it."""
    process = StoreProcess(tmp_path_factory.mktemp("own-store"))
    process.command += ["--appendfsync", StoreConfig().appendfsync]
    yield process.start()
    process.kill()


@pytest.fixture(scope="module")
def own_buffer(
    own_store: StoreProcess, run_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    process = buffer_on(own_store, run_file, tmp_path_factory.mktemp("own-buffer"))
    yield process.start()
    process.kill()


@pytest.mark.parametrize("victim", ["buffer", "store", "lessee", "producer"])
def test_kill_9_at_any_moment_loses_nothing_and_trains_nothing_twice(
    own_store, own_buffer, run_id, tmp_path, capsys, victim
):
    with Stream(own_store, own_buffer, run_id, tmp_path, window=3) as stream:
        for _ in range(KILLS):
            stream.kill(victim)
        line = stream.finish(victim)
    with capsys.disabled():
        print(line)


def test_kill_9_of_all_of_them_in_any_order_loses_nothing_and_trains_nothing_twice(
    own_store, own_buffer, run_id, tmp_path, capsys
):
    with Stream(own_store, own_buffer, run_id, tmp_path, window=3) as stream:
        for _ in range(KILLS):
            stream.kill(stream.random.choice(sorted(stream.processes)))
        line = stream.finish("mixed")
    with capsys.disabled():
        print(line)


def test_what_is_sent_twice_or_again_too_late_takes_effect_once(own_store, own_buffer, run_id, tmp_path, capsys):
    with Stream(own_store, own_buffer, run_id, tmp_path, window=3, twice=True) as stream:
        line = stream.finish("twice")
    with capsys.disabled():
        print(line)


def test_acknowledgements_may_come_in_any_order(own_store, own_buffer, run_id, tmp_path, capsys):
    with Stream(own_store, own_buffer, run_id, tmp_path, window=10) as stream:
        line = stream.finish("any order")
    with capsys.disabled():
        print(line)


@pytest.fixture
def faketime() -> None:
    if not LIBRARY.is_file():
        pytest.skip("libfaketime is not there (apt-get install faketime), and nothing else sets the clock of one process")


@pytest.fixture
def clocked_store(faketime: None, tmp_path: Path) -> Iterator[ClockedStore]:
    process = ClockedStore(tmp_path)
    yield process.start()
    process.kill()


def test_jumps_of_the_store_s_clock_lose_nothing_and_train_nothing_twice(clocked_store, run_file, run_id, tmp_path, capsys):
    buffer, largest = buffer_on(clocked_store, run_file, tmp_path), 0.0
    try:
        with Stream(clocked_store, buffer.start(), run_id, tmp_path, window=3) as stream:
            for number in range(KILLS):
                offset = stream.random.uniform(-7200, 7200)
                clocked_store.clock.set(offset)
                assert abs(clocked_store.offset() - offset) < 30, "the clock did not jump"
                largest = max(largest, abs(offset))
                stream.kill(("lessee", "producer")[number % 2])  # what it held has a time of another clock then
            line = stream.finish(f"clock ({KILLS} jumps, up to {largest:.0f} s off)")
    finally:
        buffer.kill()
    with capsys.disabled():
        print(line)


def test_jumps_of_the_buffer_s_clock_lose_nothing_and_train_nothing_twice(
    faketime, own_store, run_file, run_id, tmp_path, capsys
):
    clock, buffer, largest = Clock(tmp_path), buffer_on(own_store, run_file, tmp_path), 0.0
    buffer.command = [*clock.prefix, *buffer.command]
    try:
        with Stream(own_store, buffer.start(), run_id, tmp_path, window=3) as stream:
            for number in range(KILLS):
                offset = stream.random.choice([-1, 1]) * stream.random.uniform(600, 7200)
                clock.set(offset)
                largest = max(largest, abs(offset))
                stream.kill(("lessee", "producer")[number % 2])
            line = stream.finish(f"buffer's clock ({KILLS} jumps, up to {largest:.0f} s off)")
        assert abs(stop(buffer) - offset) < 60, "the clock did not jump"
    finally:
        buffer.kill()
    with capsys.disabled():
        print(line)
