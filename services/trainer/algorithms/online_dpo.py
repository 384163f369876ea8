"""DPO on the policy's own answers, as ChatLearn has it: in a group, every answer is preferred to every one that earned less.

With s = the mean over a response's tokens of log policy - log reference, a group's loss is the mean over its ordered pairs
with reward_i > reward_j of -log sigmoid(beta (s_i - s_j)). A group without such a pair has none.

Shape suffixes: N tokens, S samples, P ordered pairs.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from baton.config.algorithm import OnlineDpoConfig
from services.trainer.algorithms.losses import LossOutput, sample_sums


@dataclass(frozen=True, slots=True)
class OrderedPairs:
    """Preferred and other sample of each pair, int64 [P], and each pair's share of the loss [P]."""

    better_P: torch.Tensor
    worse_P: torch.Tensor
    weights_P: torch.Tensor


def ordered_pairs(rewards_S: torch.Tensor, group_of_S: torch.Tensor, groups: float) -> OrderedPairs:
    """All pairs of one group with different rewards. A group's pairs share 1 / `groups`, the number of groups in the
    global batch. `group_of_S` numbers the groups of a micro-batch, which holds them whole; -1 leaves a sample out."""
    together_SS = (group_of_S[:, None] == group_of_S[None, :]) & (group_of_S >= 0)[:, None]
    better_P, worse_P = (together_SS & (rewards_S[:, None] > rewards_S[None, :])).nonzero(as_tuple=True)
    pairs_of_P = torch.bincount(group_of_S[better_P])[group_of_S[better_P]] if len(better_P) else better_P
    return OrderedPairs(better_P, worse_P, 1 / (pairs_of_P.to(rewards_S.dtype) * groups))


@dataclass(frozen=True, slots=True)
class OnlineDpoBatch:
    """What is known of a micro-batch's tokens before the forward pass."""

    reference_logprobs_N: torch.Tensor
    mask_N: torch.Tensor
    """1 for tokens that count into their response's log-probability."""
    sample_of_N: torch.Tensor
    samples: int
    pairs: OrderedPairs


def online_dpo_loss(logprobs_N: torch.Tensor, batch: OnlineDpoBatch, config: OnlineDpoConfig) -> LossOutput:
    """The loss of a micro-batch's groups; `logprobs_N` carries the gradient."""
    counts_N = batch.mask_N > 0
    log_ratio_N = torch.where(counts_N, logprobs_N - batch.reference_logprobs_N, 0.0)
    lengths_S = sample_sums(counts_N.to(log_ratio_N.dtype), batch.sample_of_N, batch.samples)
    score_S = sample_sums(log_ratio_N, batch.sample_of_N, batch.samples) / lengths_S.clamp(min=1)
    margin_P = config.beta * (score_S[batch.pairs.better_P] - score_S[batch.pairs.worse_P])
    weights_P = batch.pairs.weights_P
    loss = -(logsigmoid(margin_P) * weights_P).sum()
    with torch.no_grad():
        correct_P = (margin_P > 0).to(weights_P.dtype)
        sums = {"margin": (margin_P * weights_P).sum(), "accuracy": (correct_P * weights_P).sum()}
    return LossOutput(loss, sums | {"paired_fraction": weights_P.sum(), "loss": loss.detach()})
