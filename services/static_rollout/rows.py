"""The rows of a static batch: what each asks for, and what it has so far."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from baton.samples import FinishReason
from services.static_rollout.draw import Sampling, draw, row_uniforms


@dataclass(frozen=True, slots=True)
class Row:
    """One response to one prompt."""

    row_id: str
    """With `seed`, what the random numbers depend on."""
    prompt: Sequence[int]
    limit: int
    """Most tokens of the response, at least one; its prompt and it fit into the model's context."""
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    ignore_eos: bool = False
    """Go on after an end token."""
    stop: Sequence[str] = ()
    """Texts that end the response."""
    stop_ids: Sequence[int] = ()
    """Tokens that do, whatever `ignore_eos` says."""


@dataclass(slots=True)
class Response:
    """What one row has so far; it is whole when `finish` is set. The end token, if any, is its last."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Of each token under the distribution that it was drawn from."""
    model_logprobs: list[float] = field(default_factory=list)
    """Of each token under the model's own distribution: at temperature 1, nothing left out."""
    uncut_logprobs: list[float] = field(default_factory=list)
    """Of each token under the model's distribution at the row's temperature, nothing left out."""
    finish: FinishReason | None = None


class Writer:
    """Continues the rows of one batch, on the rank that has the logits."""

    def __init__(self, rows: Sequence[Row], end_tokens: frozenset[int], decode: Callable[[list[int]], str]) -> None:
        self.responses = [Response() for _ in rows]
        self._rows = rows
        self._end_tokens = end_tokens
        self._decode = decode
        self._uniforms = [row_uniforms(row.seed, row.row_id) for row in rows]

    @property
    def done(self) -> bool:
        """Whether every response is whole."""
        return all(response.finish for response in self.responses)

    def advance(self, position: int, logits_BV: torch.Tensor) -> list[int]:
        """The token of each row at `position`, given the logits there.

        Inside a prompt it is the prompt's own; behind it the next of the response; of a response that is whole, any.
        """
        tokens = [row.prompt[position] if position < len(row.prompt) else 0 for row in self._rows]
        open_rows = [
            index for index, row in enumerate(self._rows)
            if position >= len(row.prompt) and not self.responses[index].finish
        ]  # fmt: skip
        if not open_rows:
            return tokens
        drawn = draw(
            logits_BV[open_rows], [self._rows[i].sampling for i in open_rows], [self._uniforms[i] for i in open_rows]
        )
        columns = (column.tolist() for column in drawn)
        for index, token, logprob, model_logprob, uncut_logprob in zip(open_rows, *columns, strict=True):
            response = self.responses[index]
            response.token_ids.append(token)
            response.logprobs.append(logprob)
            response.model_logprobs.append(model_logprob)
            response.uncut_logprobs.append(uncut_logprob)
            response.finish = self._finish(self._rows[index], response.token_ids)
            tokens[index] = token
        return tokens

    def _finish(self, row: Row, token_ids: list[int]) -> FinishReason | None:
        if token_ids[-1] in row.stop_ids or (not row.ignore_eos and token_ids[-1] in self._end_tokens):
            return FinishReason.STOP
        if row.stop and any(text in self._decode(token_ids) for text in row.stop):
            return FinishReason.STOP
        return FinishReason.LENGTH if len(token_ids) == row.limit else None
