"""What Linux's /proc tells about processes: who descends from whom, and which process a pid really is."""

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

# Positions in /proc/PID/stat, counted after the command's closing bracket; see proc_pid_stat(5).
_STATE, _PARENT, _START_TIME = 0, 1, 19


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
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
