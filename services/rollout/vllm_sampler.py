"""Three log-probabilities of every sampled token, from vLLM's samplers: of what it was drawn from, of the raw model, and of
the uncut distribution, which is the raw model's at the temperature of the request.

vLLM returns the first, as its `logprobs_mode` says for the whole engine. Here the others are put behind it:

    [sampled token, the same by the raw model, the same uncut, likeliest token, second likeliest, ...]

A request that asks for 1 log-probability gets the first two, one that asks for 2 all three, and one that asks for k + 2 also
k of the likeliest.

Where vLLM has the token of each, the second place has the mark of the weights that were loaded when it was sampled.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from vllm.v1.outputs import LogprobsTensors

RAW_COLUMN, UNCUT_COLUMN = 1, 2
MARKS = 256
"""Marks repeat after so many; no response stands still through so many sets of weights."""

GREEDY_BELOW = 1e-5
"""vLLM's own limit of temperatures at which it draws."""

_REQUESTS = {
    "MinPLogitsProcessor": "min_p_count", "LogitBiasLogitsProcessor": "biases", "MinTokensLogitsProcessor": "min_toks",
}  # fmt: skip
"""Where vLLM's own logits processors keep whom they work for."""
_WRAPPED = "_baton_raw_logprobs"
_ALIKE = "_baton_alike"
_mark = 0


def loaded(load: int) -> None:
    """To be called in every worker, before it loads the weights of that number."""
    global _mark
    _mark = load % MARKS


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one of vLLM's samplers is called, and what it knows of the batch that it is called with."""

    method: str
    batch: str
    """Name of the argument."""
    asked: Callable[[Any, Any], int | None]
    """(sampler, batch) -> log-probabilities that it asks for, besides the sampled tokens' own."""
    temperatures: Callable[[Any, Any], torch.Tensor | None]
    """(sampler, batch) -> [requests], 0 where nothing is drawn; None if nowhere."""
    alike: Callable[[Any, Any, int], tuple[Any, bool]]
    """(sampler, batch, number) -> the batch as if it asked for so many, or as it is if that takes no time; and whether all
    is sampled from the raw model itself."""


def install() -> None:
    """Has the samplers of this process return all three. Once is enough; a second call changes nothing."""
    from vllm.v1.sample.sampler import Sampler

    _wrap(Sampler, _Kind(
        "forward", "sampling_metadata",
        asked=lambda sampler, metadata: metadata.max_num_logprobs,
        temperatures=lambda sampler, metadata: metadata.temperature,
        alike=lambda sampler, metadata, number: _alike(metadata, number),
    ))  # fmt: skip
    try:
        from vllm.v1.worker.gpu.sample.sampler import Sampler as GpuSampler
    except ImportError:  # this version has the one sampler only, or no Triton, which the other needs
        return
    _wrap(GpuSampler, _Kind(
        "__call__", "input_batch",
        asked=lambda sampler, batch: sampler.sampling_states.max_num_logprobs(batch.idx_mapping_np),
        temperatures=lambda sampler, batch: sampler.sampling_states.temperature.gpu[batch.idx_mapping],
        alike=lambda sampler, batch, number: (batch, _leaves_logits(sampler, batch)),
    ))  # fmt: skip


def _wrap(sampler: type, kind: _Kind) -> None:
    sample = getattr(sampler, kind.method)
    if hasattr(sample, _WRAPPED):
        return

    def with_others(self: Any, logits: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        batch = arguments[0] if arguments else options.pop(kind.batch)
        asked = kind.asked(self, batch) or 0
        if asked < RAW_COLUMN:
            return sample(self, logits, batch, *arguments[1:], **options)
        number = max(asked - UNCUT_COLUMN, 0)  # to find the likeliest of a large vocabulary takes time
        fewer, is_whole = kind.alike(self, batch, number)
        raw = None if is_whole else logits.log_softmax(dim=-1, dtype=torch.float32)  # the sampler may change the logits
        output = sample(self, logits, fewer, *arguments[1:], **options)
        found = output.logprobs_tensors
        if raw is None:
            columns = [_first(found.logprobs)] * min(asked, UNCUT_COLUMN)
        else:
            own = output.sampled_token_ids[:, :1].long()
            columns = [raw.gather(-1, own)]
            if asked >= UNCUT_COLUMN:
                columns.append(_uncut(raw, kind.temperatures(self, batch)).gather(-1, own))
        output.logprobs_tensors = _with_columns(found, asked, columns)
        return output

    setattr(with_others, _WRAPPED, True)
    setattr(sampler, kind.method, with_others)


def _alike(metadata: Any, number: int) -> tuple[Any, bool]:
    """`_Kind.alike`, found once for each metadata: vLLM makes others whenever a request comes or goes."""
    known = vars(metadata)
    if _ALIKE not in known:
        known[_ALIKE] = replace(metadata, max_num_logprobs=number), _samples_whole(metadata)
    return known[_ALIKE]


def _samples_whole(metadata: Any) -> bool:
    """Whether nothing changes the logits: no penalty, no temperature but 1, no cut. That need not be computed then."""
    temperatures, thinking = metadata.temperature, getattr(metadata, "thinking_budget_state_holder", None)
    if temperatures is not None:
        if temperatures.device.type != "cpu":  # to look at them would have the device wait
            return False
        if not ((temperatures == 1) | (temperatures < GREEDY_BELOW)).all():
            return False
    untouched = metadata.no_penalties and metadata.allowed_token_ids_mask is None and not metadata.bad_words_token_ids
    idle = thinking is None and all(_is_idle(processor) for processor in metadata.logitsprocs.all)
    return untouched and idle and metadata.top_k is None and metadata.top_p is None


def _leaves_logits(sampler: Any, batch: Any) -> bool:
    """The same of the other sampler, which knows it of each request; not in all versions."""
    processed = getattr(sampler, "needs_logits_processing", None)
    return processed is not None and not processed[batch.idx_mapping_np].any()


def _is_idle(processor: Any) -> bool:
    state = _REQUESTS.get(type(processor).__name__)
    return state is not None and not getattr(processor, state, True)


def _uncut(raw: torch.Tensor, temperatures: torch.Tensor | None) -> torch.Tensor:
    """The raw model's log-probabilities [requests, vocabulary] at these temperatures; greedy requests are scored at 1."""
    if temperatures is None:
        return raw
    divisors = torch.where(temperatures < GREEDY_BELOW, 1.0, temperatures)
    return (raw / divisors[:, None]).log_softmax(dim=-1)


def _with_columns(found: LogprobsTensors, asked: int, columns: list[torch.Tensor]) -> LogprobsTensors:
    """Puts columns [requests, 1] behind the sampled tokens', with marks for their tokens, and behind them what makes up for
    the number that was `asked` for. In each step of the engine: nothing is done that need not be."""
    kept = RAW_COLUMN + asked - len(columns)

    def insert(into: torch.Tensor, new: list[torch.Tensor]) -> torch.Tensor:
        rest = [into[:, RAW_COLUMN:kept]] if kept > RAW_COLUMN else []
        return torch.cat([_first(into), *new, *rest], dim=-1)

    mark = torch.full_like(_first(found.logprob_token_ids), _mark)
    return found._replace(
        logprob_token_ids=insert(found.logprob_token_ids, [mark] * len(columns)), logprobs=insert(found.logprobs, columns)
    )


def _first(columns: torch.Tensor) -> torch.Tensor:
    return columns if columns.shape[-1] == 1 else columns[:, :1]
