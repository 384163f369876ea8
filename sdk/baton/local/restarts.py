"""Services that are started again when they die: rollout replicas, whose weights the trainer has and sends again."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from baton.errors import ServiceFaultError
from baton.local.processes import Child, log_tail, ready_file_probe

LIMIT = 3
"""So many starts in a row may come to nothing."""

STEADY_S = 60.0
"""A service that was ready for so long before it died is not one that cannot live."""


class Restarted:
    """One service that was ready once, and is started again at the same address when it dies."""

    def __init__(
        self, child: Child, launch: Callable[[], Child], ready_file: Path, startup_s: float, note: Callable[[str], None]
    ) -> None:  # fmt: skip
        """`launch` starts a process that takes the place of `child`, and must be ready within `startup_s`; `note` gets a
        line for each death."""
        self._child = child
        self._launch = launch
        self._ready_file = ready_file
        self._startup_s = startup_s
        self._note = note
        self._deaths = 0
        self._ready_at: float | None = time.monotonic()
        self._started_at = 0.0

    @property
    def child(self) -> Child:
        """The present process."""
        return self._child

    async def poll(self) -> dict[str, Any] | None:
        """Looks once, and starts the service again if it has died. Returns what it says about itself when it is ready anew.

        Raises ServiceFaultError, with the end of its log, when it has died LIMIT times and once more.
        """
        if (end := self._child.unasked_end()) is not None:
            self._start_again(end)
        elif self._ready_at is None:
            if facts := await ready_file_probe(self._ready_file)():
                self._ready_at = time.monotonic()
                return facts
            if time.monotonic() - self._started_at > self._startup_s:
                self._child.end_at_once()
        return None

    def _start_again(self, end: str) -> None:
        if self._ready_at is not None and time.monotonic() - self._ready_at > STEADY_S:
            self._deaths = 0
        self._deaths += 1
        if self._deaths > LIMIT:
            raise ServiceFaultError(f"{end}, and so did the {LIMIT} before it; {log_tail(self._child.log)}")
        self._note(f"{end}; starting it again")
        self._ready_file.unlink(missing_ok=True)
        self._child, self._ready_at, self._started_at = self._launch(), None, time.monotonic()
