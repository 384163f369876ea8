"""vLLM's log-probabilities as the columns that samples carry; see `vllm_sampler` for the order that they come in."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from vllm import SamplingParams
from vllm.logprobs import FlatLogprobs
from vllm.v1.engine.async_llm import AsyncLLM

from services.rollout.vllm_logprobs import PlainLogprobs
from services.rollout.vllm_sampler import MARKS, RAW_COLUMN, UNCUT_COLUMN

OTHERS = 2
"""Log-probabilities that a request asks for besides those of the likeliest tokens, to get all three of its own."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """What is known of a response's tokens, [tokens] each."""

    drawn_from: np.ndarray
    """float32 log-probabilities under the distribution that was sampled from."""
    raw: np.ndarray
    """float32, under the raw model."""
    uncut: np.ndarray | None
    """float32, under the raw model at the request's temperature; None: not asked for."""
    loads: np.ndarray
    """int64: which of the sets of weights that the engine took sampled the token; 0: it had taken none yet."""

    @classmethod
    def of(cls, found: PlainLogprobs | FlatLogprobs, loads: int, adapter: int | None = None) -> Self:
        """Of a request that asked for so many as `vllm_sampler` tells, from an engine that has taken `loads` sets of
        weights; `adapter`: the one of them that all of it was computed with. One that asked for those of the likeliest
        tokens too (flat) has asked for all three of its own."""
        if isinstance(found, PlainLogprobs):
            logprobs, ids = found.rows()
            marks = ids[:, RAW_COLUMN]
            columns = [logprobs[:, column] for column in range(found.columns)]
        else:
            starts, logprobs = np.asarray(found.start_indices, np.int64), np.asarray(found.logprobs, np.float32)
            marks = np.asarray(found.token_ids, np.int64)[starts + RAW_COLUMN]
            columns = [logprobs[starts + column] for column in range(1 + OTHERS)]
        uncut = columns[UNCUT_COLUMN] if len(columns) > UNCUT_COLUMN else None
        own = loads - (loads - marks) % MARKS if adapter is None else np.full(len(marks), adapter)
        return cls(columns[0], columns[RAW_COLUMN], uncut, own)


def prompt_table(flat: FlatLogprobs, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """(token ids int32, log-probabilities float32) of a prompt's tokens from the second on: [tokens - 1, columns] each.

    The first column is the token's own, the others are the likeliest tokens'.
    """
    rows = [slice(start, start + columns) for start in flat.start_indices[1:]]  # nothing predicts the first token
    ids = np.asarray([flat.token_ids[row] for row in rows], np.int32).reshape(-1, columns)
    return ids, np.asarray([flat.logprobs[row] for row in rows], np.float32).reshape(-1, columns)


class LikeliestAlone:
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
