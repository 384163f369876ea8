"""vLLM's log-probabilities as the columns that samples carry; see `vllm_sampler` for the order that they come in."""

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from vllm import SamplingParams
from vllm.logprobs import FlatLogprobs
from vllm.v1.engine.async_llm import AsyncLLM

from services.rollout.vllm_sampler import MARKS, RAW_COLUMN, UNCUT_COLUMN

OTHERS = 2
"""Log-probabilities that a request asks for besides those of the likeliest tokens, to get all three of its own."""


def sampled_logprobs(flat: FlatLogprobs) -> tuple[np.ndarray, np.ndarray]:
    """(of the distribution sampled from, of the raw model): float32 [tokens] each, of the sampled tokens."""
    values, starts = np.asarray(flat.logprobs, np.float32), np.asarray(flat.start_indices, np.int64)
    return values[starts], values[starts + RAW_COLUMN]


def uncut_logprobs(flat: FlatLogprobs) -> np.ndarray:
    """Of the raw model at the request's temperature, of the sampled tokens: float32 [tokens]. Of a request that asked for
    OTHERS or more."""
    return np.asarray(flat.logprobs, np.float32)[np.asarray(flat.start_indices, np.int64) + UNCUT_COLUMN]


def sampled_loads(flat: FlatLogprobs, loads: int) -> np.ndarray:
    """Which of the `loads` sets of weights that the engine took sampled each token: int64 [tokens]. 0: it took none yet."""
    marks = np.asarray(flat.token_ids, np.int64)[np.asarray(flat.start_indices, np.int64) + RAW_COLUMN]
    return loads - (loads - marks) % MARKS


def prompt_table(flat: FlatLogprobs, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """(token ids int32, log-probabilities float32) of a prompt's tokens from the second on: [tokens - 1, columns] each.

    The first column is the token's own, the others are the likeliest tokens'.
    """
    rows = [slice(start, start + columns) for start in flat.start_indices[1:]]  # nothing predicts the first token
    ids = np.asarray([flat.token_ids[row] for row in rows], np.int32).reshape(-1, columns)
    return ids, np.asarray([flat.logprobs[row] for row in rows], np.float32).reshape(-1, columns)


class PlainLogprobs:
    """The engine as vLLM's own code expects it: behind a token's own log-probability, those of the likeliest ones alone."""

    def __init__(self, llm: AsyncLLM) -> None:
        """Everything but `generate` is the engine's own."""
        self._llm = llm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    async def generate(self, prompt: Any, params: SamplingParams, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        """As AsyncLLM's."""
        if params.logprobs is None or params.logprobs < 0:
            async for output in self._llm.generate(prompt, params, *arguments, **options):
                yield output
            return
        asked = params.clone()
        asked.logprobs, asked.flat_logprobs = params.logprobs + OTHERS, True
        async for output in self._llm.generate(prompt, asked, *arguments, **options):
            for completion in output.outputs:
                completion.logprobs = likeliest_alone(completion.logprobs)
            yield output


def likeliest_alone(flat: FlatLogprobs) -> FlatLogprobs:
    """What vLLM itself would have returned."""
    found = FlatLogprobs()
    for start, end in zip(flat.start_indices, flat.end_indices, strict=True):
        kept = [start, *range(start + 1 + OTHERS, end)]
        columns = (
            [values[at] for at in kept] for values in (flat.token_ids, flat.logprobs, flat.ranks, flat.decoded_tokens)
        )
        found.append_fast(*columns)
    return found
