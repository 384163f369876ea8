"""How a benchmark speaks: progress on stderr, and one JSON object as the last line of stdout."""

import asyncio
import json
import signal
import statistics
import sys
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from baton.errors import BatonError


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """What `work` returns. An error of ours ends the program with its message alone: it names cause and fix."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # asyncio tidies up after that one
    try:
        return asyncio.run(work)
    except BatonError as error:
        raise SystemExit(f"error: {error}") from None


def note(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def conclude(name: str, value: float, unit: str, *, goal: float, at_least: bool, parts: Mapping[str, Any]) -> None:
    """Prints the result. `at_least`: whether the goal is a lower limit; otherwise it is an upper one.

    Parts that have a goal of their own say in `met` whether they reach it; all of them must.
    """
    met = value >= goal if at_least else value <= goal
    met &= all(part["met"] for part in parts.values() if isinstance(part, Mapping) and "met" in part)
    result = {"name": name, "value": rounded(value), "unit": unit, "goal": goal, "met": met, "parts": parts}
    print(json.dumps(result), flush=True)


def rounded(value: float) -> float:
    """Four significant digits: no timing here is better than that."""
    return float(f"{value:.4g}")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": rounded(statistics.median(values)), "min": rounded(min(values)), "max": rounded(max(values))}
