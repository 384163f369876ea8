"""The `baton` command as a process of its own; unless told otherwise, with stand-ins in the places of the services."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

STAND_INS = Path(__file__).parent / "cli_stand_ins"
RUN_FILE = """
runtime:
  {num_episode: 2, sample_per_episode: 8, num_inference_per_prompt: 4, train_micro_batch_size: 1, train_global_batch_size: 2}
models: {policy: {num_replica: 2}, ppo_policy: {data_parallel_size: 2}}
"""


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 120.0) -> None:
    """Returns once `condition()` holds; fails the test with `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


class Place:
    """A working directory with a run file. All processes that are started from it, and no others, work in it."""

    def __init__(self, directory: Path, run_file: str = RUN_FILE, *, stand_ins: bool = True) -> None:
        self.directory = directory
        path = os.pathsep.join(filter(None, [str(STAND_INS), os.environ.get("PYTHONPATH")]))
        self.environment = os.environ | ({"PYTHONPATH": path} if stand_ins else {})
        self.run_file = directory / "run.yaml"
        self.run_file.write_text(run_file)
        self.runs = directory / "runs"

    def start(self, *arguments: str, told: str = "", **options) -> subprocess.Popen:
        """Starts `baton ARGUMENTS`; `told` says how the stand-ins misbehave."""
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "baton.cli", *arguments], cwd=self.directory, text=True,
            env=self.environment | {"BATON_STAND_IN": told},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options},
        )  # fmt: skip

    def baton(self, *arguments: str, told: str = "", timeout_s: float = 150) -> subprocess.CompletedProcess:
        """Runs `baton ARGUMENTS` to its end."""
        process = self.start(*arguments, told=told)
        out, err = process.communicate(timeout=timeout_s)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def processes(self) -> dict[int, str]:
        """Pid -> command line of everything that works in the directory or below."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                if (entry / "cwd").readlink().is_relative_to(self.directory):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def count(self, word: str) -> int:
        """How many processes have `word` in their command line."""
        return sum(word in command for command in self.processes().values())

    def kill_all(self) -> dict[int, str]:
        """Kills and returns what was left."""
        left = self.processes()
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return left
