"""One managed child: a service, kept by a keeper of its own, with a log file and a way to tell that it is ready."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from baton.errors import DeadlineError, ServiceFaultError
from baton.local.process_tree import end_below, kill

GRACE_S = 5.5
"""Seconds from SIGTERM to SIGKILL; a little more than a service takes to drain its calls."""
POLL_S = 0.05
TAIL_LINES = 20

_LAUNCHER_REPORT = re.compile(r"torch/distributed/elastic/.*failed \(exitcode")
"""Where torchrun begins to report that a rank has failed; its 30 lines would hide what the rank itself said."""

Probe = Callable[[], Awaitable[dict[str, Any] | None]]
"""Tells what a service says about itself ({address, pid, ...}) once it is ready, and None before."""


def log_tail(log: Path) -> str:
    """The last lines of `log`, indented, under a line that names it."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    if not lines:
        return f"its log {log} is empty"
    reports = (index for index, line in enumerate(lines) if _LAUNCHER_REPORT.search(line))
    last = next(reports, len(lines))
    return "\n".join([f"the last lines of {log}:", *(f"    {line}" for line in lines[max(0, last - TAIL_LINES) : last])])


def exit_words(code: int) -> str:
    """How a process ended, in words: `code` is negative, or above 128, for a signal."""
    number = -code if code < 0 else code - 128
    if number in set(signal.Signals):
        hint = " (if nobody sent it, the machine ran out of memory)" if number == signal.SIGKILL else ""
        return f"was ended by {signal.Signals(number).name}{hint}"
    return f"exited with code {code}"


def ready_file_probe(path: Path) -> Probe:
    """A probe that reads the file that a service writes when it answers."""

    async def probe() -> dict[str, Any] | None:
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            return None

    return probe


async def wait_ready(
    process: subprocess.Popen[bytes], name: str, log: Path, probe: Probe, within_s: float
) -> dict[str, Any]:
    """What `probe` answers, once it does.

    Raises ServiceFaultError at once if the process ends first, DeadlineError after `within_s` seconds.
    """
    deadline = time.monotonic() + within_s
    while (facts := await probe()) is None:
        code = process.poll()
        if code is not None:
            raise ServiceFaultError(f"{name} {exit_words(code)} before it was ready; {log_tail(log)}")
        if time.monotonic() > deadline:
            raise DeadlineError(
                f"{name} was not ready within {within_s:g} s; raise deadlines.startup_s if it is only slow; {log_tail(log)}"
            )
        await asyncio.sleep(POLL_S)
    return facts


class Child:
    """One service as a process below this one. Start it from the main thread (see `keeper.end_with_parent`)."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None, grace_s: float = GRACE_S
    ) -> None:
        """Starts `command`; `env` is added to this process's environment; stdout and stderr go to the file `log`."""
        self.name = name
        self.log = log
        self.grace_s = grace_s
        self._stopping = False
        keeper = [sys.executable, "-P", "-m", "baton.local.keeper", str(os.getpid()), str(grace_s)]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            self.process = subprocess.Popen(
                [*keeper, *command], stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            )  # fmt: skip

    async def wait_ready(self, probe: Probe, within_s: float) -> dict[str, Any]:
        """What the service says about itself once it is ready; see the function of the same name."""
        return await wait_ready(self.process, self.name, self.log, probe, within_s)

    def unasked_end(self) -> str | None:
        """How the service ended, in words, if it did so without being asked to."""
        code = self.process.poll()
        return None if code is None or self._stopping else f"{self.name} {exit_words(code)}"

    def check(self) -> None:
        """Raises ServiceFaultError if the service ended without being asked to."""
        if (end := self.unasked_end()) is not None:
            raise ServiceFaultError(f"{end}; {log_tail(self.log)}")

    def end_at_once(self) -> None:
        """Kills the service and all below it, without waiting; `unasked_end` tells when that is done."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)

    def expect_end(self) -> None:
        """From now on the service's end is no error."""
        self._stopping = True

    async def stop(self) -> None:
        """SIGTERM, the grace period, SIGKILL: returns when nothing of the service is left."""
        self.expect_end()
        if self.process.poll() is None:
            self.process.terminate()
        deadline = time.monotonic() + self.grace_s + 1
        while self.process.poll() is None and time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)
        kill_all([self])


def kill_all(children: Sequence[Child]) -> None:
    """Ends the children, and all below them, at once."""
    left = [child.process for child in children if child.process.poll() is None]
    for child in children:
        child.expect_end()
    for process in left:
        process.send_signal(signal.SIGQUIT)
    for process in left:
        try:
            process.wait(1)
        except subprocess.TimeoutExpired:  # the keeper itself hangs or is frozen
            end_below(process.pid)
            kill([process.pid])
            process.wait(5)
