"""What a step knows before its first forward pass, and what an algorithm makes of it.

    parts of the global batch ──Objective.plan──▶ Plan: a loss per micro-batch, whose parts add up to the step's loss

Shape suffixes: N response tokens of a micro-batch, S its samples.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from baton.clients.buffer import MicroBatch
from baton.errors import InvalidRequestError
from baton.samples import RewardStatus, Samples
from services.trainer.algorithms.advantages import SumOverDataParallel
from services.trainer.algorithms.losses import LossOutput
from services.trainer.checks import SCORED, require

Unit = Literal["sample", "pair", "group"]
"""Which consecutive samples a micro-batch must hold together."""


@dataclass(frozen=True, slots=True)
class Part:
    """One micro-batch, its tensors on the device."""

    samples: Samples
    kept_S: torch.Tensor
    """bool: whether the sample enters the loss."""
    mask_N: torch.Tensor
    """float32: 1 where the token does, else 0."""
    sample_of_N: torch.Tensor
    """int64: the sample of each token."""

    def tokens(self, column: str) -> torch.Tensor:
        """A column with one element per response token, float32 [N]."""
        return torch.tensor(getattr(self.samples, column).values, dtype=torch.float32, device=self.mask_N.device)

    def numbers(self, column: str) -> torch.Tensor:
        """A column with one element per sample, float32 [S]; 0 for NaN, which must not meet an unscored sample's weight."""
        values = np.nan_to_num(getattr(self.samples, column))
        return torch.tensor(values, dtype=torch.float32, device=self.mask_N.device)

    def has(self, column: str) -> bool:
        """Whether the samples have the column."""
        return getattr(self.samples, column) is not None


@dataclass(frozen=True, slots=True)
class DataParallel:
    """What the ranks that share the global batch can learn of each other. Collective: all call it in the same order."""

    rank: int
    size: int
    sum: SumOverDataParallel

    def total(self, value: float) -> float:
        """The sum of every rank's number."""
        return float(self.sum(torch.tensor([value], dtype=torch.float64)))

    def maximum(self, value: float) -> float:
        """The largest of every rank's number."""
        places = torch.zeros(self.size, dtype=torch.float64)
        places[self.rank] = value
        return float(self.sum(places).max())


Loss = Callable[[int, Any], LossOutput]
"""(index of a part, what the model says of it) -> that part of the loss. A policy gives TokenScores, a critic the values of
the states before the response tokens [N], a reward model scores [S]."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One batch's losses. `metrics` are of the global batch and the same on all ranks, and so are `totals`: sums that
    `Objective.advance` takes, added up over the plans of one update."""

    loss: Loss
    value_loss: Loss | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    totals: Mapping[str, float] = field(default_factory=dict)


class Objective(ABC):
    """An algorithm as the trainer sees it."""

    columns: tuple[str, ...] = SCORED
    """The columns of samples that it reads."""
    unit: ClassVar[Unit] = "sample"
    needs_reward: ClassVar[bool] = False
    """Whether only samples with a reward enter the loss."""

    def check(self, samples: Samples) -> None:
        """Raises InvalidRequestError for a micro-batch that lacks a column, splits a unit, or has a reward that is none."""
        require(samples, self.columns)
        if self.needs_reward:
            check_rewards(samples)

    @abstractmethod
    def plan(self, parts: Sequence[Part], data_parallel: DataParallel) -> Plan:
        """The losses of a step on this rank's parts. Collective."""

    def state(self) -> dict[str, float]:
        """What has to be kept from step to step, and in checkpoints."""
        return {}

    def restore(self, state: Mapping[str, float]) -> None:  # noqa: B027 - most have no state
        """Goes on from that state."""

    def advance(self, totals: Mapping[str, float]) -> None:  # noqa: B027 - most have no state
        """The policy was updated on batches whose plans had these totals."""

    def part(self, batch: MicroBatch, tail: str, device: torch.device) -> Part:
        """A micro-batch on the device. With `tail` "mask", samples that repeat others stay out of the loss."""
        samples = batch.samples
        kept = np.ones(len(samples), bool)
        if self.needs_reward:
            kept &= samples.reward_status == RewardStatus.VALUE
        if tail == "mask" and batch.wrapped is not None:
            kept &= ~batch.wrapped
        sample_of = np.repeat(np.arange(len(samples)), samples.response_ids.lengths.astype(np.int64))
        mask = kept[sample_of].astype(np.float32)
        if samples.loss_mask is not None:
            mask *= samples.loss_mask.values
        kept_S, mask_N, sample_of_N = (torch.from_numpy(array).to(device) for array in (kept, mask, sample_of))
        return Part(samples, kept_S, mask_N, sample_of_N)


def old_logprobs(part: Part) -> torch.Tensor:
    """Of the weights that sampled, over the whole vocabulary at the sample's temperature [N].

    Whatever top-p, top-k or penalties did: see `Samples.uncut`. Samples that do not say it were sampled from the whole.
    """
    uncut = part.samples.uncut() or part.samples.rollout_logprobs
    return torch.tensor(uncut.values, dtype=torch.float32, device=part.mask_N.device)


def token_total(parts: Sequence[Part], data_parallel: DataParallel) -> float:
    """Tokens that enter the loss, over all ranks."""
    return data_parallel.total(sum(float(part.mask_N.sum()) for part in parts))


def sample_total(parts: Sequence[Part], data_parallel: DataParallel) -> float:
    """Samples of which a token enters the loss, over all ranks."""
    return data_parallel.total(sum(len(part.sample_of_N[part.mask_N > 0].unique()) for part in parts))


def loss_total(normalization: str, parts: Sequence[Part], data_parallel: DataParallel) -> float:
    """What `token_weights` divides by; 1 if nothing enters the loss."""
    count = token_total if normalization == "token" else sample_total
    return max(count(parts, data_parallel), 1.0)


def check_rewards(samples: Samples) -> None:
    """Raises InvalidRequestError for a sample whose status says that it has a reward, and that has none. The buffer lets no
    such sample in; a loop of a program's own may bring one."""
    missing = (samples.reward_status == RewardStatus.VALUE) & ~np.isfinite(samples.rewards)
    if missing.any():
        at = int(missing.argmax())
        raise InvalidRequestError(
            f"sample {samples.sample_ids[at]} has the reward {samples.rewards[at]}, but its status says that it is a value; "
            "set reward_status to ABSTAIN or ERROR, or give it a finite reward"
        )


def check_pairs(samples: Samples) -> None:
    """Raises InvalidRequestError unless samples 2p and 2p + 1 are a pair."""
    if len(samples) % 2:
        raise InvalidRequestError(
            f"a micro-batch has {len(samples)} samples, which are no whole pairs; give runtime.train_micro_batch_size and "
            "train_global_batch_size even numbers, and put the chosen and the rejected sample of a pair next to each other"
        )
    for first in range(0, len(samples), 2) if samples.group_ids is not None else ():
        chosen, rejected = samples.group_ids[first : first + 2]
        if chosen != rejected:
            raise InvalidRequestError(
                f"samples {samples.sample_ids[first]} and {samples.sample_ids[first + 1]} stand where a pair should, but "
                f"are of groups {chosen} and {rejected}; put a pair's chosen and rejected sample next to each other"
            )


def pair_weights(parts: Sequence[Part], data_parallel: DataParallel) -> list[torch.Tensor]:
    """For each part its pairs' shares of the loss [P], which sum to 1 over the global batch; 0 for a pair of which a sample
    is left out."""
    kept = [(part.kept_S[0::2] & part.kept_S[1::2]).float() for part in parts]
    total = max(data_parallel.total(sum(float(kept_P.sum()) for kept_P in kept)), 1.0)
    return [kept_P / total for kept_P in kept]
