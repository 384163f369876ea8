"""Seconds per phase of a transfer, on the clock of the device that does the work."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PHASES = ("gather", "wire", "load", "digest", "verify")


class Stopwatch:
    """Adds up phases of one thread's work on one device."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._spans: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._last: torch.cuda.Event | None = None
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._started = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a block: on a GPU, what it has put on the current stream, where phases follow each other without a gap."""
        if not self._cuda:
            started = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - started
            return
        if self._last is None:
            self._last = self._mark()
        yield
        start, self._last = self._last, self._mark()
        self._spans.append((name, start, self._last))

    @staticmethod
    def _mark() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> dict[str, float]:
        """By phase, and `total` since the stopwatch was made. To be asked when all work is done."""
        for name, start, end in self._spans:
            self._seconds[name] += start.elapsed_time(end) / 1000
        self._spans.clear()
        return self._seconds | {"total": time.perf_counter() - self._started}
