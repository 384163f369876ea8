"""Merges a rank's micro-batches into fewer and fuller ones: `runtime.train_micro_batch_tokens` counts what is computed.

The buffer cuts a rank's share by all tokens of its samples. Where a group's prompt is computed once, much less is left of
them, and a device is busy only with rows of many tokens. Merging never parts what the buffer held together.
"""

from collections.abc import Sequence

import numpy as np

from baton.clients.buffer import MicroBatch
from baton.samples import Samples
from services.trainer.packing import groups_of

SCORE_TOKENS = 4096
"""Samples are scored in rows of about this many tokens; a longer one has a row of its own."""


def fed_tokens(samples: Samples, *, share_prefix: bool) -> int:
    """Tokens that a forward pass over the samples takes; see `pack`."""
    groups = groups_of(samples, share_prefix)
    prompts = samples.prompt_ids.lengths[[group[0] for group in groups]] if groups else np.empty(0)
    return int(prompts.sum()) + int(np.maximum(samples.response_ids.lengths.astype(np.int64) - 1, 0).sum())


def merged(batches: Sequence[MicroBatch], tokens: int, *, share_prefix: bool) -> list[MicroBatch]:
    """The same samples in the same order, in micro-batches of at most `tokens` fed tokens where several are merged; as few
    as that allows, and as equal as that number of them allows."""
    sizes = [fed_tokens(batch.samples, share_prefix=share_prefix) for batch in batches]
    fewest = len(cuts(sizes, tokens))
    low, high = max((size for size in sizes if size <= tokens), default=0), tokens
    while low < high:  # the least limit that makes do with so few
        middle = (low + high) // 2
        low, high = (low, middle) if len(cuts(sizes, middle)) <= fewest else (middle + 1, high)
    return [_joined([batches[i] for i in cut]) for cut in cuts(sizes, low)]


def cuts(sizes: Sequence[int], limit: int) -> list[range]:
    """Consecutive indices whose sizes add up to at most `limit`; one that is larger is alone."""
    found, start, total = [], 0, 0
    for i, size in enumerate(sizes):
        if i > start and total + size > limit:
            found.append(range(start, i))
            start, total = i, 0
        total += size
    return [*found, range(start, len(sizes))] if len(sizes) else []


def _joined(batches: Sequence[MicroBatch]) -> MicroBatch:
    if len(batches) == 1:
        return batches[0]
    wrapped = np.concatenate([batch.wrapped for batch in batches])
    return MicroBatch(batches[0].lease_id, Samples.concat([batch.samples for batch in batches]), wrapped)
