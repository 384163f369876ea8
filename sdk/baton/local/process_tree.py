"""What Linux's /proc tells about processes: who descends from whom, and which process a pid really is; and their end."""

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

# Positions in /proc/PID/stat, counted after the command's closing bracket; see proc_pid_stat(5).
_STATE, _PARENT, _START_TIME = 0, 1, 19

_KILL_S = 30.0
"""How long to go on killing. Where the machine is busy, the kernel may take ten seconds to free what a process had; one that
survives this hangs there, and nobody can end it."""

TRACKERS_S = 2.0
"""How long Python's resource trackers may take to end by themselves, once all others have ended; longer where this process
itself has to wait for a CPU."""

_LOOK_S = 0.01
_TRACKER_LOOKS = round(TRACKERS_S / _LOOK_S)

_TRACKER = b"resource_tracker import main"
"""In the command line of a resource tracker, of multiprocessing's or joblib's."""


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()  # the command itself may hold spaces and brackets


def _living() -> Iterator[tuple[int, int]]:
    """(pid, parent's pid) of every process that is not a zombie."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (stat := _stat(int(entry.name))) and stat[_STATE] not in "ZX":
            yield int(entry.name), int(stat[_PARENT])


def descendants(root: int) -> list[int]:
    """Pids of all living processes below `root`, whatever their session or group."""
    children: dict[int, list[int]] = {}
    for pid, parent in _living():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    layer = children.get(root, [])
    while layer:
        found += layer
        layer = [grandchild for pid in layer for grandchild in children.get(pid, [])]
    return found


def start_time(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot; None if no such process lives. Tells a recycled pid from the first."""
    stat = _stat(pid)
    return int(stat[_START_TIME]) if stat and stat[_STATE] not in "ZX" else None


def kill(pids: Iterable[int]) -> None:
    """Sends SIGKILL to each of `pids` that still lives."""
    _send(signal.SIGKILL, pids)


def kill_below(root: int) -> bool:
    """Kills all processes below `root` but resource trackers, which it thaws; see `end_below`. Tells if there were any."""
    below = descendants(root)
    trackers = _trackers(below)
    kill(set(below) - trackers)
    _send(signal.SIGCONT, trackers)  # one that somebody froze would not end
    return len(below) > len(trackers)


def end_below(root: int) -> None:
    """Kills all processes below `root`, until none is left.

    Python's resource trackers come last: when all that use one have ended it ends as well, and removes the shared memory and
    the semaphores that those have left in /dev/shm.
    """
    deadline, looks = time.monotonic() + _KILL_S, 0
    while (below := descendants(root)) and looks < 2 * _TRACKER_LOOKS:
        if not kill_below(root):
            looks += 1
            if looks > _TRACKER_LOOKS:
                kill(below)
        elif time.monotonic() < deadline:
            looks = 0
        else:
            return  # trackers end with those that still hang
        time.sleep(_LOOK_S)


def _trackers(pids: Iterable[int]) -> set[int]:
    found = set()
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            if _TRACKER in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found


def _send(number: signal.Signals, pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
