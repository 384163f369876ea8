"""Three log-probabilities of every sampled token, from vLLM's samplers: of what it was drawn from, of the raw model, and of
the uncut distribution, which is the raw model's at the temperature of the request.

vLLM returns the first, as its `logprobs_mode` says for the whole engine. Here the others are put behind it:

    [sampled token, the same by the raw model, the same uncut, likeliest token, second likeliest, ...]

A request that asks for 1 log-probability gets the first two, one that asks for 2 all three, and one that asks for k + 2 also
k of the likeliest.

Where vLLM has the token of each, the second place has the mark of the weights that were loaded when it was sampled.
"""

from collections.abc import Callable
from typing import Any

import torch
from vllm.v1.outputs import LogprobsTensors

RAW_COLUMN, UNCUT_COLUMN = 1, 2
MARKS = 256
"""Marks repeat after so many; no response stands still through so many sets of weights."""

GREEDY_BELOW = 1e-5
"""vLLM's own limit of temperatures at which it draws."""

_WRAPPED = "_baton_raw_logprobs"
_mark = 0


def loaded(load: int) -> None:
    """To be called in every worker, before it loads the weights of that number."""
    global _mark
    _mark = load % MARKS


def install() -> None:
    """Has the samplers of this process return both. Once is enough; a second call changes nothing."""
    from vllm.v1.sample.sampler import Sampler

    _wrap(
        Sampler, "forward", "sampling_metadata",
        lambda sampler, metadata: metadata.max_num_logprobs, lambda sampler, metadata: metadata.temperature,
    )  # fmt: skip
    try:
        from vllm.v1.worker.gpu.sample.sampler import Sampler as GpuSampler
    except ImportError:  # this version has the one sampler only, or no Triton, which the other needs
        return
    _wrap(
        GpuSampler, "__call__", "input_batch",
        lambda sampler, batch: sampler.sampling_states.max_num_logprobs(batch.idx_mapping_np),
        lambda sampler, batch: sampler.sampling_states.temperature.gpu[batch.idx_mapping],
    )  # fmt: skip


def _wrap(
    sampler: type, method: str, batch_name: str, logprobs: Callable[[Any, Any], int | None],
    temperatures: Callable[[Any, Any], torch.Tensor | None],
) -> None:  # fmt: skip
    """`logprobs` says how many the batch asks for, besides the sampled tokens' own; `temperatures` [requests] are 0 where
    nothing is drawn, None if nowhere."""
    sample = getattr(sampler, method)
    if hasattr(sample, _WRAPPED):
        return

    def with_others(self: Any, logits: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        batch = arguments[0] if arguments else options[batch_name]
        asked = logprobs(self, batch) or 0
        if asked < RAW_COLUMN:
            return sample(self, logits, *arguments, **options)
        raw = logits.log_softmax(dim=-1, dtype=torch.float32)  # before penalties and temperature change the logits
        output = sample(self, logits, *arguments, **options)
        own = output.sampled_token_ids[:, :1].long()
        columns = [raw.gather(-1, own)]
        if asked >= UNCUT_COLUMN:
            columns.append(_uncut(raw, temperatures(self, batch)).gather(-1, own))
        output.logprobs_tensors = _with_columns(output.logprobs_tensors, torch.full_like(own, _mark), columns)
        return output

    setattr(with_others, _WRAPPED, True)
    setattr(sampler, method, with_others)


def _uncut(raw: torch.Tensor, temperatures: torch.Tensor | None) -> torch.Tensor:
    """The raw model's log-probabilities [requests, vocabulary] at these temperatures; greedy requests are scored at 1."""
    if temperatures is None:
        return raw
    divisors = torch.where(temperatures < GREEDY_BELOW, 1.0, temperatures)
    return (raw / divisors[:, None]).log_softmax(dim=-1)


def _with_columns(found: LogprobsTensors, marks: torch.Tensor, columns: list[torch.Tensor]) -> LogprobsTensors:
    """Puts columns [requests, 1] into the places from RAW_COLUMN on, with `marks` for their tokens; the last ones fall out.
    """

    def insert(into: torch.Tensor, new: list[torch.Tensor]) -> torch.Tensor:
        kept = into[:, RAW_COLUMN : into.shape[1] - len(new)]
        return torch.cat([into[:, :RAW_COLUMN], *(column.to(into.dtype) for column in new), kept], dim=-1)

    return found._replace(
        logprob_token_ids=insert(found.logprob_token_ids, [marks] * len(columns)), logprobs=insert(found.logprobs, columns)
    )
