"""The reward `verifier`: the score that a reasoning-gym task gives to a response.

Apart from the other built-ins because importing the library takes seconds; only reward workers import this file.
"""

import functools
import json
import re
from typing import Any, Literal

import reasoning_gym

_NUMBER = re.compile(r"[+-]?[0-9]+(?:[.][0-9]+)?")


def verifier(
    prompt: str,
    response: str,
    metadata: dict[str, Any],
    *,
    answer: Literal["whole", "last_number"] = "whole",
    partial: bool = False,
) -> float:
    """1.0 for full marks and otherwise 0.0, or with `partial` whatever the task gives.

    `answer` says what of the response is judged: all of it, or the last number in it, so that "3 + 4 = 7" is right.
    Raises KeyError for a prompt that did not come from `prompts.source: reasoning_gym`.
    """
    if "reasoning_gym" not in metadata:
        raise KeyError("the prompt has no reasoning-gym task; `verifier` needs prompts.source: reasoning_gym")
    maker = metadata["reasoning_gym"]
    dataset = _dataset(maker["task"], maker["size"], maker["seed"], json.dumps(maker["params"], sort_keys=True))
    judged = response.strip() if answer == "whole" else next(reversed(_NUMBER.findall(response)), "")
    score = float(dataset.score_answer(judged, dataset[maker["index"]]))
    return score if partial else float(score >= 1.0)


@functools.lru_cache(maxsize=8)
def _dataset(task: str, size: int, seed: int, params: str) -> Any:
    return reasoning_gym.create_dataset(task, size=size, seed=seed, **json.loads(params))
