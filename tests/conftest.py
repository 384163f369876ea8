"""Fixtures that several kinds of tests share. The classes behind them are in `processes.py`."""

import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import ServiceProcess, StoreProcess

signal.signal(signal.SIGINT, signal.default_int_handler)  # started in the background, it would be ignored, and inherited so


@pytest.fixture
def run_id() -> str:
    """A run of the test's own in the shared store."""
    return uuid.uuid4().hex


@pytest.fixture(scope="session")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest run file; tests add what they need by --set."""
    path = tmp_path_factory.mktemp("run") / "run.yaml"
    path.write_text("models:\n  policy: {}\n")
    return path


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    """A store that all tests share."""
    process = StoreProcess(tmp_path_factory.mktemp("store"))
    try:
        yield process.start()
    finally:
        process.kill()


@pytest.fixture(scope="session")
def buffer(store: StoreProcess, run_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A buffer service that all tests share."""
    process = ServiceProcess("buffer", run_file, tmp_path_factory.mktemp("buffer"), "--store", store.url)
    try:
        yield process.start()
    finally:
        process.kill()
