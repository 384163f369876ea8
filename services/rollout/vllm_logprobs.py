"""vLLM's handling of log-probabilities, for requests that nobody reads token by token: kept as they come, in bytes, and
without the text of each token. Python objects of each token take longer than all else that the service does with it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PLAIN = {"baton_plain_logprobs": True}
"""`SamplingParams.extra_args` of requests whose responses come whole, with `PlainLogprobs`."""

_WRAPPED = "_baton_plain"


@dataclass(slots=True)
class PlainLogprobs:
    """A response's rows of log-probabilities and of token ids, [tokens, columns] each."""

    columns: int
    logprobs: bytearray = field(default_factory=bytearray)
    token_ids: bytearray = field(default_factory=bytearray)

    def append(self, logprobs: np.ndarray, token_ids: np.ndarray) -> None:
        """Takes the first columns of further rows. Copies them: vLLM's arrays keep the whole message that they came in."""
        self.logprobs += logprobs[:, : self.columns].astype(np.float32, copy=False).tobytes()
        self.token_ids += token_ids[:, : self.columns].astype(np.int64, copy=False).tobytes()

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """(log-probabilities float32, token ids int64)."""
        pairs = (self.logprobs, np.float32), (self.token_ids, np.int64)
        logprobs, token_ids = (np.frombuffer(raw, dtype).reshape(-1, self.columns) for raw, dtype in pairs)
        return logprobs, token_ids


def install() -> None:
    """Has this process heed PLAIN. Once is enough; a second call changes nothing."""
    from vllm.logprobs import FlatLogprobs
    from vllm.v1.engine.logprobs import LogprobsProcessor

    made = LogprobsProcessor.from_new_request.__func__
    if hasattr(made, _WRAPPED):
        return
    FlatLogprobs.extend = _extended(FlatLogprobs.extend)

    class PlainProcessor(LogprobsProcessor):
        """One request's, of its prompt as ever."""

        def _update_sample_logprobs(self, logprobs_lists: Any) -> None:
            self.logprobs.append(logprobs_lists.logprobs, logprobs_lists.logprob_token_ids)

    def from_new_request(cls: type, tokenizer: Any, request: Any) -> Any:
        further = request.sampling_params.extra_args or {}
        if not further.keys() >= PLAIN.keys():
            return made(cls, tokenizer, request)
        processor = made(PlainProcessor, None, request)
        processor.logprobs = PlainLogprobs(1 + processor.num_logprobs)
        return processor

    setattr(from_new_request, _WRAPPED, True)
    LogprobsProcessor.from_new_request = classmethod(from_new_request)


def _extended(by_tokens: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """`FlatLogprobs.extend`, by which a stream's pieces are put together when its reader is slow: entry by entry. vLLM's own
    makes a dictionary by token of each position, and of entries with the same token only the last is left."""

    def extend(self: Any, more: Any) -> None:
        if not hasattr(more, "start_indices"):
            by_tokens(self, more)
            return
        before = len(self.logprobs)
        self.start_indices += [start + before for start in more.start_indices]
        self.end_indices += [end + before for end in more.end_indices]
        for name in ("token_ids", "logprobs", "ranks", "decoded_tokens"):
            getattr(self, name).extend(getattr(more, name))

    return extend
