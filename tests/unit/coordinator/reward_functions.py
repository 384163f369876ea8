"""Reward functions that behave well or badly; imported by real reward workers."""

import os
import time

from baton.engine import reward


def length(prompt, response, metadata):
    return len(response)


def says_metadata(prompt, response, metadata, key="answer"):
    return float(metadata[key] == response) if response != "?" else None


def obeys(prompt, response, metadata):
    """Does what the response says."""
    match response:
        case "raise":
            raise ValueError(f"cannot read {response!r}")
        case "hang":
            while True:
                time.sleep(0.01)
        case "exit":
            os._exit(3)
        case "sys.exit":
            raise SystemExit(4)
        case "pid":
            return os.getpid()
    return {"nan": float("nan"), "inf": float("inf"), "none": None, "text": "1.0", "true": True, "int": 3}[response]


@reward(weight=0.5, timeout_s=2, key="other")
def decorated(prompt, response, metadata, key):
    return float(metadata[key] == response)
