"""The reward functions that a run file can name without a module: `digits_only`. `verifier` has its own file."""

import re
from typing import Any

BUILTINS = {
    "digits_only": "services.coordinator.builtin_rewards:digits_only",
    "verifier": "services.coordinator.verifier:verifier",
}
"""Name in the run file -> module:function."""

_INTEGER = re.compile(r"[+-]?[0-9]+")


def digits_only(prompt: str, response: str, metadata: dict[str, Any]) -> float:
    """1.0 if the response, without blanks around it, is one integer and nothing else; otherwise 0.0."""
    return float(_INTEGER.fullmatch(response.strip()) is not None)
