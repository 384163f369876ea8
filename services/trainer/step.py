"""One optimizer step: lease -> pack -> forward and backward -> update. Runs on every rank.

buffer ──Lease──▶ micro-batches of this data-parallel rank ──▶ packed rows ──▶ pipeline ──▶ gradients ──▶ update
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from baton.clients.buffer import MicroBatch
from baton.config.algorithm import AlgorithmConfig
from baton.samples import RewardStatus, Samples
from services.trainer.algorithms.grpo import group_advantages, grpo_loss
from services.trainer.algorithms.gspo import gspo_loss
from services.trainer.algorithms.losses import TokenBatch, token_weights
from services.trainer.megatron.engine import Engine, Update
from services.trainer.megatron.model import TokenScores
from services.trainer.packing import PackedBatch, pack

LOSSES = {"grpo": grpo_loss, "gspo": gspo_loss}
"""By the algorithm's name in the run file."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one rank did. `sums` are this rank's parts; ranks that hold no scores have none."""

    update: Update
    sums: dict[str, float]
    samples: int
    response_tokens: int
    computed_tokens: int


def loss_mask(samples: Samples, wrapped: np.ndarray | None, tail: str) -> np.ndarray:
    """float32 per response token: 0 for unscored samples, masked tokens and, with tail "mask", repeats."""
    lengths = samples.response_ids.lengths.astype(np.int64)
    keep = samples.reward_status == RewardStatus.VALUE
    if tail == "mask" and wrapped is not None:
        keep = keep & ~wrapped
    mask = np.repeat(keep, lengths).astype(np.float32)
    return mask if samples.loss_mask is None else mask * samples.loss_mask.values


@dataclass(frozen=True, slots=True)
class _Part:
    """One micro-batch, ready for the device."""

    packed: PackedBatch
    samples: Samples
    mask: np.ndarray


def _prepare(batches: Sequence[MicroBatch], tail: str, share_prefix: bool) -> list[_Part]:
    parts = []
    for batch in batches:
        packed = pack(batch.samples, share_prefix=share_prefix)
        parts.append(_Part(packed, batch.samples, loss_mask(batch.samples, batch.wrapped, tail)))
    return parts


def _global_total(parts: Sequence[_Part], normalization: str, engine: Engine) -> float:
    """Tokens or samples that enter the loss, over all data-parallel ranks."""
    if normalization == "token":
        local = sum(float(part.mask.sum()) for part in parts)
    else:
        local = sum(len(np.unique(part.packed.sample_of_N.numpy()[part.mask > 0])) for part in parts)
    return max(engine.sum_over_data_parallel(local), 1.0)


def train_step(
    engine: Engine, batches: Sequence[MicroBatch], algorithm: AlgorithmConfig, *, tail: str, share_prefix: bool
) -> StepReport:
    """Accumulates the gradient of the global batch's loss and updates the weights once."""
    parts = _prepare(batches, tail, share_prefix)
    total = _global_total(parts, algorithm.loss_normalization, engine)
    device = engine.layout.device

    def loss(index: int, scores: TokenScores) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        part = parts[index]
        samples, sample_of_N = part.samples, part.packed.sample_of_N.to(device)
        rewards_S, mean_S, std_S = (
            torch.tensor(np.nan_to_num(column), device=device)  # an unscored sample's NaN must not meet its zero weight
            for column in (samples.rewards, samples.group_reward_mean, samples.group_reward_std)
        )
        advantages_S = group_advantages(rewards_S, mean_S, std_S, algorithm)
        mask_N = torch.tensor(part.mask, device=device)
        batch = TokenBatch(
            rollout_logprobs_N=torch.tensor(samples.rollout_logprobs.values, device=device),
            advantages_N=advantages_S[sample_of_N],
            weights_N=token_weights(
                mask_N, sample_of_N, len(samples), normalization=algorithm.loss_normalization, total=total
            ),
            sample_of_N=sample_of_N,
        )
        output = LOSSES[algorithm.name](scores.logprobs_N, scores.entropies_N, batch, algorithm)
        return output.loss, output.sums

    reports = engine.forward_backward([part.packed for part in parts], loss)
    update = engine.step()
    owns_sums = bool(reports) and engine.layout.tensor_rank == 0  # tensor-parallel ranks hold the same numbers
    sums = {name: float(sum(report[name] for report in reports)) for name in reports[0]} if owns_sums else {}
    counts_here = engine.layout.tensor_rank == 0 and engine.layout.pipeline_rank == 0
    return StepReport(
        update=update,
        sums=sums,
        samples=sum(len(part.samples) for part in parts) if counts_here else 0,
        response_tokens=int(sum(part.mask.sum() for part in parts)) if counts_here else 0,
        computed_tokens=sum(len(part.packed.tokens_T) for part in parts) if counts_here else 0,
    )
