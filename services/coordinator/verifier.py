"""The reward `verifier`: the score that a reasoning-gym task gives to a response.

Apart from the other built-ins because importing the library takes seconds; only reward workers import this file.
"""

import functools
import json
from typing import Any

import reasoning_gym


def verifier(prompt: str, response: str, metadata: dict[str, Any], *, partial: bool = False) -> float:
    """1.0 for full marks and otherwise 0.0, or with `partial` whatever the task gives.

    Raises KeyError for a prompt that did not come from `prompts.source: reasoning_gym`.
    """
    if "reasoning_gym" not in metadata:
        raise KeyError("the prompt has no reasoning-gym task; `verifier` needs prompts.source: reasoning_gym")
    maker = metadata["reasoning_gym"]
    dataset = _dataset(maker["task"], maker["size"], maker["seed"], json.dumps(maker["params"], sort_keys=True))
    score = float(dataset.score_answer(response.strip(), dataset[maker["index"]]))
    return score if partial else float(score >= 1.0)


@functools.lru_cache(maxsize=8)
def _dataset(task: str, size: int, seed: int, params: str) -> Any:
    return reasoning_gym.create_dataset(task, size=size, seed=seed, **json.loads(params))
