"""What runs inside a reward worker: load the functions once, then score one response per call.

Nothing escapes a call: whatever the user's code does comes back as a status with its cause.
"""

import json
import math
import numbers
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from baton.engine import import_function
from baton.samples import RewardStatus
from services.common.server import end_with_parent

Outcome = tuple[int, float, str]
"""(RewardStatus, value or NaN, cause of a missing value)."""

TRACEBACK_FRAMES = 4
"""The last so many frames of a traceback are reported."""

_functions: dict[str, Callable[..., float | None]] = {}
_load_errors: dict[str, str] = {}


def start(targets: Sequence[str]) -> None:
    """Imports the functions ("module:name") before the first call, so that no call's time limit pays for it."""
    end_with_parent()
    for target in targets:
        try:
            _functions[target] = import_function(target)
        except BaseException as error:  # user code runs at import; a worker that dies here would take the pool with it
            _load_errors[target] = _describe(error)


def load_errors() -> dict[str, str]:
    """Functions that could not be imported, with the cause."""
    return dict(_load_errors)


def call(target: str, prompt: str, response: str, metadata: str, params: dict[str, Any]) -> Outcome:
    """Scores one response. `metadata` is the prompt's, as JSON."""
    try:
        value = _functions[target](prompt, response, json.loads(metadata), **params)
        if value is None:
            return RewardStatus.ABSTAIN, math.nan, ""
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            return RewardStatus.ERROR, math.nan, f"returned {value!r}, which is neither a finite number nor None"
        return RewardStatus.VALUE, float(value), ""
    except BaseException as error:  # SystemExit too: nothing in the user's code may end a worker unseen
        return RewardStatus.ERROR, math.nan, _describe(error)


def _describe(error: BaseException) -> str:
    frames = traceback.format_tb(error.__traceback__)[-TRACEBACK_FRAMES:]
    return f"{type(error).__name__}: {error}\n{''.join(frames)}".rstrip()
