"""One token per row from logits: temperature, top-k and top-p, with the log-probability under what was drawn from.

Shape suffixes: B rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Sampling:
    """What one row is sampled with."""

    temperature: float = 1.0
    """Divisor of the logits; 0: the likeliest token always, of the model's own distribution."""
    top_k: int = -1
    """Draw among so many of the likeliest tokens, and those as likely as the last of them; -1 or 0: among all."""
    top_p: float = 1.0
    """Draw among the likeliest tokens, after top-k, whose probabilities add up to this."""

    @property
    def is_cut(self) -> bool:
        """Whether tokens are left out of what is drawn from."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1)

    @property
    def tells_uncut(self) -> bool:
        """Whether neither the model's own distribution nor what is drawn from is the whole one at the temperature."""
        return self.is_cut and self.temperature != 1


class Drawn(NamedTuple):
    """Per row: token id (int64), its log-probability under the distribution drawn from, under the model's own, and under
    that at the row's temperature."""

    tokens_B: torch.Tensor
    logprobs_B: torch.Tensor
    model_logprobs_B: torch.Tensor
    uncut_logprobs_B: torch.Tensor


def row_uniforms(seed: int, row_id: str) -> np.random.Generator:
    """The random numbers of one row; they depend on nothing but the seed and the row's own id."""
    key = blake2b(f"{seed}|{row_id}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


def drawn_from(logits_BV: torch.Tensor, sampling: Sequence[Sampling]) -> torch.Tensor:
    """Log-probabilities [B, V], float32, of the distribution that each row is drawn from; -inf where it never is."""
    scaled_BV = _scaled(logits_BV, sampling)
    filtered = [i for i, row in enumerate(sampling) if row.is_cut]
    if filtered:
        scaled_BV[filtered] = _filtered(scaled_BV[filtered], [sampling[i] for i in filtered])
    return scaled_BV.log_softmax(-1)


def _scaled(logits_BV: torch.Tensor, sampling: Sequence[Sampling]) -> torch.Tensor:
    """New logits, in float32, each row's at its temperature; greedy rows' at 1."""
    temperatures = [row.temperature or 1.0 for row in sampling]
    return logits_BV.float() / torch.tensor(temperatures, device=logits_BV.device)[:, None]


def _filtered(logits_BV: torch.Tensor, sampling: Sequence[Sampling]) -> torch.Tensor:
    """The logits, -inf for what top-k and then top-p leave out."""
    device, vocabulary = logits_BV.device, logits_BV.shape[1]
    sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    k_B = torch.tensor([min(row.top_k, vocabulary) if row.top_k > 0 else vocabulary for row in sampling], device=device)
    least_B1 = sorted_BV.gather(1, k_B[:, None] - 1)
    sorted_BV = sorted_BV.masked_fill(sorted_BV < least_B1, -torch.inf)
    p_B1 = torch.tensor([row.top_p for row in sampling], dtype=torch.float64, device=device)[:, None]
    probabilities_BV = sorted_BV.double().softmax(-1)
    likelier_BV = probabilities_BV.cumsum(-1) - probabilities_BV  # of all likelier tokens together
    sorted_BV = sorted_BV.masked_fill((likelier_BV >= p_B1) & (p_B1 < 1), -torch.inf)
    return torch.empty_like(logits_BV).scatter_(1, order_BV, sorted_BV)


def draw(logits_BV: torch.Tensor, sampling: Sequence[Sampling], uniforms: Sequence[np.random.Generator]) -> Drawn:
    """Draws one token per row; a row that is not greedy takes one number from its `uniforms`.

    The token is where the cumulative distribution, in the order of the vocabulary, passes that number.
    """
    logprobs_BV = drawn_from(logits_BV, sampling)
    numbers = [numbers.random() if row.temperature else 0.0 for row, numbers in zip(sampling, uniforms, strict=True)]
    cumulative_BV = logprobs_BV.double().exp().cumsum(-1)
    total_B1 = cumulative_BV[:, -1:].contiguous()
    passed_B1 = torch.tensor(numbers, dtype=torch.float64, device=logits_BV.device)[:, None] * total_B1
    tokens_B1 = torch.searchsorted(cumulative_BV, passed_B1, right=True)
    tokens_B1 = tokens_B1.minimum(torch.searchsorted(cumulative_BV, total_B1))  # should rounding pass the last likely token
    greedy_B1 = torch.tensor([not row.temperature for row in sampling], device=logits_BV.device)[:, None]
    tokens_B1 = torch.where(greedy_B1, logits_BV.argmax(-1, keepdim=True), tokens_B1)
    wholes_BV = logits_BV.float().log_softmax(-1), _scaled(logits_BV, sampling).log_softmax(-1)
    columns = (values_BV.gather(1, tokens_B1)[:, 0] for values_BV in (logprobs_BV, *wholes_BV))
    return Drawn(tokens_B1[:, 0], *columns)
