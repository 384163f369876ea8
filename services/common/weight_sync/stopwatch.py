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
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._started = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a block: on a GPU, what it has put on the current stream."""
        if not self._cuda:
            started = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - started
            return
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        self._spans.append((name, start, end))

    def seconds(self) -> dict[str, float]:
        """By phase, and `total` since the stopwatch was made. To be asked when all work is done."""
        for name, start, end in self._spans:
            self._seconds[name] += start.elapsed_time(end) / 1000
        self._spans.clear()
        return self._seconds | {"total": time.perf_counter() - self._started}
