"""Reward functions that behave well or badly; imported by real reward workers."""

import os
import time

from baton.engine import reward


def length(prompt, response, metadata):
    return len(response)


def says_metadata(prompt, response, metadata, key="answer"):
    return float(metadata[key] == response)


def raises(prompt, response, metadata):
    raise ValueError(f"cannot read {response!r}")


def raises_on_x(prompt, response, metadata):
    if response == "x":
        raise ValueError("x")
    return 1.0


def hangs(prompt, response, metadata):
    while True:
        time.sleep(0.01)


def hangs_on_x(prompt, response, metadata):
    return hangs(prompt, response, metadata) if response == "x" else os.getpid()


def exits_on_x(prompt, response, metadata):
    return os._exit(3) if response == "x" else 1.0


def returns(prompt, response, metadata):
    return {"nan": float("nan"), "inf": float("inf"), "none": None, "text": "1.0", "true": True, "int": 3}[response]


@reward(weight=0.5, timeout_s=2, key="other")
def decorated(prompt, response, metadata, key):
    return float(metadata[key] == response)
