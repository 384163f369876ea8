"""Real stores of every kind: a server with options of its own, a cluster with a replica, a master under a sentinel."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest
import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from baton.clients.buffer import BufferClient
from baton.local.store import find_server, free_port
from processes import Process, ServiceProcess
from services.buffer.store import Store


@asynccontextmanager
async def open_store(url: str, retry_s: float = 30.0) -> AsyncIterator[Store]:
    store = Store(url, retry_s=retry_s)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def buffer_on(url: str, run_file: Path, directory: Path) -> AsyncIterator[BufferClient]:
    """A buffer service on that store."""
    service = ServiceProcess("buffer", run_file, directory, "--store", url)
    try:
        await asyncio.to_thread(service.start)
        async with BufferClient(service.address, timeout_s=30) as client:
            yield client
    finally:
        service.kill()


def state_key(run: str) -> str:
    """A key that the script `put_state` takes."""
    return f"baton:{{{run}}}:state:x"


def free_ports(count: int) -> list[int]:
    """As many different ones."""
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return list(found)


def wait_until(holds: Callable[[], bool], what: str, within_s: float = 60.0) -> None:
    """Fails the test if it does not hold in time. A command that fails counts as not yet."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            if holds():
                return
        except redis.RedisError:
            pass
        assert time.monotonic() < deadline, f"{what}: not within {within_s} s"
        time.sleep(0.02)


class Server(Process):
    """A server on the loopback with the given options; port 0: it listens on no port."""

    def __init__(self, directory: Path, port: int, *options: object, password: str | None = None) -> None:
        self.port, self.password, self.directory = port, password, directory / f"server-{port}"
        self.directory.mkdir()
        own = ["--port", port, "--bind", "127.0.0.1", "--dir", self.directory, "--appendonly", "yes", "--save", ""]
        own += ["--repl-diskless-sync-delay", 0]
        if password:
            own += ["--requirepass", password, "--masterauth", password]
        command = [find_server(), *map(str, (*own, *options))]
        super().__init__(command, self.directory / "log", lambda: "Ready to accept connections" in self.output())

    def ask(self, *command: object) -> Any:
        """The answer to a command, over a connection of its own."""
        with redis.Redis(port=self.port, password=self.password, decode_responses=True, socket_timeout=5) as client:
            return client.execute_command(*command)


class Group:
    """Servers that start together and end together."""

    servers: list[Process]
    master: Server
    replica: Server

    def start(self) -> Self:
        for server in self.servers:
            server.start()
        self.join()
        return self

    def kill(self) -> None:
        for server in self.servers:
            server.kill()

    def join(self) -> None:
        """Returns once they work together."""


class ClusterServers(Group):
    """Three masters, and a replica of the first one."""

    def __init__(self, directory: Path) -> None:
        ports = free_ports(8)
        self.bus = ports[4:]
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", 1000, "--cluster-port")
        self.servers = [Server(directory, port, *options, bus) for port, bus in zip(ports[:4], self.bus, strict=True)]
        self.masters, self.master, self.replica = self.servers[:3], self.servers[0], self.servers[3]
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports[:4])

    def join(self) -> None:
        first, replica = self.master, self.replica
        for index, master in enumerate(self.masters):
            master.ask("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            master.ask("CLUSTER", "ADDSLOTSRANGE", *self.slots(index))
        for server, bus in zip(self.servers[1:], self.bus[1:], strict=True):
            first.ask("CLUSTER", "MEET", "127.0.0.1", server.port, bus)
        first_id = first.ask("CLUSTER", "MYID")
        wait_until(lambda: replica.ask("CLUSTER", "REPLICATE", first_id), "the replica meets its master")
        wait_until(lambda: replica.ask("INFO", "replication")["master_link_status"] == "up", "the replica follows")
        for server in self.servers:
            wait_until(lambda server=server: "cluster_state:ok" in server.ask("CLUSTER", "INFO"), "the cluster works")
            wait_until(lambda server=server: len(server.ask("CLUSTER", "REPLICAS", first_id)) == 1, "the replica is known")

    def slots(self, index: int) -> tuple[int, int]:
        """First and last slot of a master."""
        return REDIS_CLUSTER_HASH_SLOTS * index // 3, REDIS_CLUSTER_HASH_SLOTS * (index + 1) // 3 - 1

    def run_at(self, index: int, prefix: str) -> str:
        """A run id whose keys belong to that master."""
        first, last = self.slots(index)
        return next(run for run in (f"{prefix}-{i}" for i in range(1000)) if first <= key_slot(run.encode()) <= last)

    def move_slot(self, slot: int, index: int) -> None:
        """Gives an empty slot to that master."""
        taker = self.masters[index]
        taker_id = taker.ask("CLUSTER", "MYID")
        for server in (taker, *self.masters):
            server.ask("CLUSTER", "SETSLOT", slot, "NODE", taker_id)


class SentinelServers(Group):
    """A master, its replica and a sentinel that replaces a dead master after a second."""

    PASSWORD, SENTINEL_PASSWORD = "data-secret", "watch-secret"

    def __init__(self, directory: Path) -> None:
        master, replica, port = free_ports(3)
        self.master = Server(directory, master, password=self.PASSWORD)
        self.replica = Server(directory, replica, "--replicaof", f"127.0.0.1 {master}", password=self.PASSWORD)
        monitor = (f"monitor relay 127.0.0.1 {master} 1", f"auth-pass relay {self.PASSWORD}")
        times = ("down-after-milliseconds relay 1000", "failover-timeout relay 5000")
        lines = [f"sentinel {line}" for line in (*monitor, *times)]
        self.sentinel = make_sentinel(directory, port, f"requirepass {self.SENTINEL_PASSWORD}", *lines)
        self.servers = [self.master, self.replica, self.sentinel]
        self.url = f"redis+sentinel://:{self.PASSWORD}@127.0.0.1:{port}/relay/2?sentinel_password={self.SENTINEL_PASSWORD}"

    def start(self) -> Self:
        self.master.start()
        self.replica.start()
        wait_until(lambda: self.replica.ask("INFO", "replication")["master_link_status"] == "up", "the replica follows")
        self.sentinel.start()
        wait_until(lambda: "+slave" in self.sentinel.output(), "the sentinel finds the replica")
        return self


def make_sentinel(directory: Path, port: int, *lines: str) -> Process:
    """A sentinel with these lines in its configuration, which it keeps its state in."""
    config, log = directory / "sentinel.conf", directory / "sentinel.log"
    config.write_text("\n".join((f"port {port}", "bind 127.0.0.1", f"dir {directory}", *lines, "")))
    return Process([find_server(), str(config), "--sentinel"], log, lambda: "+monitor" in log.read_text())


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1, signed by itself, and its key."""
    if not (openssl := shutil.which("openssl")):
        pytest.skip("no openssl command to make a certificate with")
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    made = [
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=store",
    ]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([openssl, "req", *made, *names], check=True, capture_output=True, timeout=60)
    return certificate, key
