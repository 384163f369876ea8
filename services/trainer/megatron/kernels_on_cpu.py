"""Flash attention of sequences that lie end to end, on a CPU: torch's kernel, called for sequences of about equal length.

Queries are [Q, heads, D], keys and values [K, KV heads, D]; their n-th sequences belong together. Causal ones are as many
queries as keys, and those that are short share a call: for an answer of twenty tokens a call takes far longer than its sums.
They are lengthened to the longest of the call, which no earlier token sees.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch

SHORT = 1024
"""Sequences that are all shorter are computed in float32 even in a bfloat16 model: the kernel is then faster by a third at
200 tokens, and not slower until here."""
TOGETHER, STEP = 512, 16
"""Causal sequences of at most so many tokens share a call with all that are as long, counted in steps."""
Lengths = tuple[int, ...]


class _Call(NamedTuple):
    """B sequences of at most L tokens."""

    queries_BL: torch.Tensor | slice
    """Their tokens' places; beyond a sequence's end, its last one again. A slice is one sequence."""
    keys_BL: torch.Tensor | slice
    inside_BL: torch.Tensor | None = None
    """Which of them are its own tokens."""

    def take(self, x: torch.Tensor, places_BL: torch.Tensor | slice) -> torch.Tensor:
        """[tokens, heads, D] -> [B, heads, L, D]."""
        taken = x[places_BL]
        return (taken[None] if self.inside_BL is None else taken).transpose(1, 2)

    def put(self, whole: torch.Tensor, places_BL: torch.Tensor | slice, part: torch.Tensor) -> None:
        """[B, heads, L, D] to where it belongs in [tokens, heads, D]."""
        part = part.transpose(1, 2)
        if self.inside_BL is None:
            whole[places_BL] = part[0]
        else:
            whole[places_BL[self.inside_BL]] = part[self.inside_BL]


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, queries: Lengths, keys: Lengths, causal: bool, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [Q, heads, D] and log-sum-exp [heads, Q]."""
    output = torch.empty_like(q)
    lse = q.new_empty(len(q), q.shape[1], 1, dtype=torch.promote_types(q.dtype, torch.float32))
    for call in _calls(queries, keys, causal):
        mine, theirs = call.queries_BL, call.keys_BL
        found, found_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            call.take(q, mine), call.take(k, theirs), call.take(v, theirs), 0.0, causal, scale=scale
        )
        call.put(output, mine, found)
        call.put(lse, mine, found_lse[..., None])
    return output, lse[..., 0].t().contiguous()


def backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, output: torch.Tensor, lse: torch.Tensor,
    queries: Lengths, keys: Lengths, causal: bool, scale: float | None,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """Gradients of the queries, keys and values."""
    gradients = tuple(torch.empty_like(x) for x in (q, k, v))
    lse_Q = lse.t()[..., None]
    for call in _calls(queries, keys, causal):
        mine, theirs = call.queries_BL, call.keys_BL
        grad_BHLD = call.take(grad, mine)
        if call.inside_BL is not None:  # what lengthens a sequence has no part in the loss
            grad_BHLD = grad_BHLD * call.inside_BL[:, None, :, None]
        parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_BHLD, call.take(q, mine), call.take(k, theirs), call.take(v, theirs), call.take(output, mine),
            call.take(lse_Q, mine)[..., 0].contiguous(), 0.0, causal, scale=scale,
        )  # fmt: skip
        for whole, part, places in zip(gradients, parts, (mine, theirs, theirs), strict=True):
            call.put(whole, places, part)
    return gradients


@lru_cache(maxsize=32)  # all layers of a pass ask for the same
def _calls(queries: Lengths, keys: Lengths, causal: bool) -> tuple[_Call, ...]:
    """One for each sequence, or of causal ones for each length."""
    if not causal:
        return tuple(_Call(mine, theirs) for mine, theirs in zip(_slices(queries), _slices(keys), strict=True))
    alike: dict[int, list[slice]] = defaultdict(list)
    alone = []
    for place, length in zip(_slices(queries), queries, strict=True):
        (alike[-(-length // STEP)] if length <= TOGETHER else alone).append(place)
    alone += [places.pop() for places in alike.values() if len(places) == 1]
    return tuple([_Call(place, place) for place in alone] + [_together(places) for places in alike.values() if places])


def _together(places: list[slice]) -> _Call:
    starts_B1, ends_B1 = (torch.tensor(ends)[:, None] for ends in zip(*((p.start, p.stop) for p in places), strict=True))
    rows_BL = starts_B1 + torch.arange(int((ends_B1 - starts_B1).max()))
    inside_BL = rows_BL < ends_B1
    rows_BL = torch.minimum(rows_BL, ends_B1 - 1)
    return _Call(rows_BL, rows_BL, inside_BL)


def _slices(lengths: Lengths) -> Iterator[slice]:
    return (slice(end - length, end) for end, length in zip(accumulate(lengths), lengths, strict=True))
