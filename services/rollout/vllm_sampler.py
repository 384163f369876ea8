"""Both log-probabilities of every sampled token, from vLLM's samplers: of what it was drawn from, and of the raw model.

vLLM returns one of them, as its `logprobs_mode` says for the whole engine. Here the raw model's is put in second place:

    [sampled token, the same by the raw model, likeliest token, second likeliest, ...]

A request that asks for k + 1 log-probabilities gets k of the likeliest, and one that asks for 1 gets these two.

Where vLLM has the token of each, the second place has the mark of the weights that were loaded when it was sampled.
"""

from collections.abc import Callable
from typing import Any

import torch
from vllm.v1.outputs import LogprobsTensors

RAW_COLUMN = 1
MARKS = 256
"""Marks repeat after so many; no response stands still through so many sets of weights."""

_WRAPPED = "_baton_raw_logprobs"
_mark = 0


def loaded(load: int) -> None:
    """To be called in every worker, before it loads the weights of that number."""
    global _mark
    _mark = load % MARKS


def install() -> None:
    """Has the samplers of this process return both. Once is enough; a second call changes nothing."""
    from vllm.v1.sample.sampler import Sampler

    _wrap(Sampler, "forward", "sampling_metadata", lambda sampler, metadata: metadata.max_num_logprobs)
    try:
        from vllm.v1.worker.gpu.sample.sampler import Sampler as GpuSampler
    except ImportError:  # this version has the one sampler only, or no Triton, which the other needs
        return
    _wrap(
        GpuSampler, "__call__", "input_batch",
        lambda sampler, batch: sampler.sampling_states.max_num_logprobs(batch.idx_mapping_np),
    )  # fmt: skip


def _wrap(sampler: type, method: str, batch_name: str, logprobs: Callable[[Any, Any], int | None]) -> None:
    """`logprobs` says how many the batch asks for, besides the sampled tokens' own."""
    sample = getattr(sampler, method)
    if hasattr(sample, _WRAPPED):
        return

    def with_raw(self: Any, logits: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if (logprobs(self, arguments[0] if arguments else options[batch_name]) or 0) < RAW_COLUMN:
            return sample(self, logits, *arguments, **options)
        raw = logits.log_softmax(dim=-1, dtype=torch.float32)  # before penalties and temperature change the logits
        output = sample(self, logits, *arguments, **options)
        own = output.sampled_token_ids[:, :1].long()
        output.logprobs_tensors = _with_column(output.logprobs_tensors, own, raw.gather(-1, own))
        return output

    setattr(with_raw, _WRAPPED, True)
    setattr(sampler, method, with_raw)


def _with_column(found: LogprobsTensors, ids: torch.Tensor, logprobs: torch.Tensor) -> LogprobsTensors:
    """Puts a column [requests, 1] into place RAW_COLUMN; the last one falls out."""

    def insert(columns: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        kept = columns[:, RAW_COLUMN:-1]
        return torch.cat([columns[:, :RAW_COLUMN], column.to(columns.dtype), kept], dim=-1)

    return found._replace(
        logprob_token_ids=insert(found.logprob_token_ids, torch.full_like(ids, _mark)),
        logprobs=insert(found.logprobs, logprobs),
    )  # fmt: skip
