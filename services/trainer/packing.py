"""Packs samples into one row of tokens, without padding by default; a prompt that several in a row share is computed once.

Shape suffixes: T packed tokens, N response tokens (the ones with a log-probability), S samples.

A segment is one prompt and the responses to it, laid out [prompt, response 0, response 1, ...]. Every response attends to
the prompt and to itself, and its positions continue the prompt's, so that each sample sees exactly what it would see
alone. A response's last token is fed only where it is wanted: nothing is predicted from it, but it ends what is scored.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from baton.errors import InvalidRequestError
from baton.samples import Samples


@dataclass(frozen=True, slots=True)
class Segment:
    """`prompt` tokens from `start` on, then each response's fed tokens (`branches`)."""

    start: int
    prompt: int
    branches: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of the whole segment."""
        return self.prompt + sum(self.branches)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One micro-batch as the model takes it."""

    tokens_T: torch.Tensor
    positions_T: torch.Tensor
    segments: tuple[Segment, ...]
    target_rows_N: torch.Tensor
    """Which packed token predicts each response token."""
    target_ids_N: torch.Tensor
    sample_of_N: torch.Tensor
    """Index of the sample that each response token belongs to."""
    last_rows_S: torch.Tensor
    """The last packed token of each sample: its response's last but one, or with `feed_last` its last."""
    temperatures_N: torch.Tensor
    """What to divide the logits by; greedy samples are scored at temperature 1."""

    def to(self, device: torch.device) -> "PackedBatch":
        """The same batch on another device."""
        moved = {name: getattr(self, name).to(device) for name in self.__slots__ if name != "segments"}
        return PackedBatch(segments=self.segments, **moved)


def groups_of(samples: Samples, share_prefix: bool) -> list[list[int]]:
    """Runs of consecutive samples with the same prompt, or each sample by itself."""
    prompts = samples.prompt_ids.rows()
    groups: list[list[int]] = []
    for i in range(len(samples)):
        if share_prefix and groups and np.array_equal(prompts[groups[-1][0]], prompts[i]):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def pack(
    samples: Samples, *, share_prefix: bool = True, feed_last: bool = False, pad_samples: bool = False
) -> PackedBatch:
    """Packs samples in their order; `feed_last` feeds the responses' last tokens too. `pad_samples` parts them all, and
    lengthens each to the longest with tokens that nothing looks at.

    Raises InvalidRequestError for an empty prompt: nothing predicts its first token.
    """
    prompts, responses = samples.prompt_ids.rows(), samples.response_ids.rows()
    fed_S = [max(len(response) - (0 if feed_last else 1), 0) for response in responses]
    longest = max((len(prompt) + fed for prompt, fed in zip(prompts, fed_S, strict=True)), default=0)
    tokens, positions, segments, rows, last_rows = [], [], [], [], []
    start = 0
    for group in groups_of(samples, share_prefix and not pad_samples):
        prompt = prompts[group[0]]
        if len(prompt) == 0:
            raise InvalidRequestError(
                f"sample {samples.sample_ids[group[0]]} has an empty prompt; give it at least one token"
            )
        tokens.append(prompt)
        positions.append(np.arange(len(prompt)))
        branches, branch_start = [], start + len(prompt)
        for i in group:
            fed = fed_S[i]
            more = longest - len(prompt) - fed if pad_samples else 0
            tokens += [responses[i][:fed], np.zeros(more)]
            positions.append(np.arange(len(prompt), len(prompt) + fed + more))
            first = start + len(prompt) - 1
            rows.append(np.concatenate([[first], np.arange(branch_start, branch_start + fed)])[: len(responses[i])])
            last_rows.append(branch_start + fed - 1 if fed else first)
            branches.append(fed + more)
            branch_start += fed + more
        segments.append(Segment(start, len(prompt), tuple(branches)))
        start = branch_start
    lengths = samples.response_ids.lengths.astype(np.int64)
    temperatures = np.ones(len(samples), np.float32) if samples.temperatures is None else samples.temperatures
    temperatures = np.where(temperatures > 0, temperatures, 1.0).astype(np.float32)
    return PackedBatch(
        tokens_T=torch.from_numpy(np.concatenate(tokens).astype(np.int64)),
        positions_T=torch.from_numpy(np.concatenate(positions).astype(np.int64)),
        segments=tuple(segments),
        target_rows_N=torch.from_numpy(np.concatenate(rows).astype(np.int64)),
        target_ids_N=torch.from_numpy(samples.response_ids.values.astype(np.int64)),
        sample_of_N=torch.from_numpy(np.repeat(np.arange(len(samples)), lengths)),
        last_rows_S=torch.tensor(last_rows, dtype=torch.int64),
        temperatures_N=torch.from_numpy(np.repeat(temperatures, lengths)),
    )


def padded(batch: PackedBatch, multiple: int) -> PackedBatch:
    """The batch with so many more tokens, which nothing looks at, that their number is a multiple of `multiple`."""
    start = len(batch.tokens_T)
    more = -start % multiple
    if not more:
        return batch
    return replace(
        batch,
        tokens_T=torch.cat([batch.tokens_T, batch.tokens_T.new_zeros(more)]),
        positions_T=torch.cat([batch.positions_T, torch.arange(more, device=batch.positions_T.device)]),
        segments=(*batch.segments, Segment(start, more, (0,))),
    )


def segment_mask(segment: Segment, device: torch.device) -> torch.Tensor | None:
    """Boolean [length, length], True where the row may attend to the column; None where plain causal attention is meant."""
    if len(segment.branches) == 1:
        return None
    branch = torch.zeros(segment.length, dtype=torch.int64, device=device)  # 0 is the prompt
    at = segment.prompt
    for index, size in enumerate(segment.branches, start=1):
        branch[at : at + size] = index
        at += size
    causal = torch.ones(segment.length, segment.length, dtype=torch.bool, device=device).tril_()
    return causal & ((branch[None, :] == 0) | (branch[None, :] == branch[:, None]))
