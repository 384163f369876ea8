"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) and IPO (Azar et al. 2023, arXiv:2310.12036).

With z = (log policy - log reference) of the chosen response minus the same of the rejected one:

    sigmoid   -(1 - e) log sigmoid(beta z) - e log sigmoid(-beta z)        e: label_smoothing
    ipo       (z - 1 / (2 beta))^2

A response's log-probability is the sum over its tokens. IPO takes means instead, as its authors' own experiments do and
TRL; ChatLearn took sums (`length_average: false`).

Shape suffixes: N tokens, S samples, P pairs: sample 2p is the chosen one of pair p, sample 2p + 1 the rejected one.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from baton.config.algorithm import DpoConfig
from services.trainer.algorithms.losses import LossOutput, sample_sums


@dataclass(frozen=True, slots=True)
class PreferenceBatch:
    """What is known of a micro-batch's tokens and pairs before the forward pass."""

    reference_logprobs_N: torch.Tensor
    mask_N: torch.Tensor
    """1 for tokens that count into their response's log-probability."""
    sample_of_N: torch.Tensor
    pair_weights_P: torch.Tensor
    """Each pair's share of the loss; they sum to 1 over the global batch."""


def dpo_loss(logprobs_N: torch.Tensor, batch: PreferenceBatch, config: DpoConfig) -> LossOutput:
    """The loss of a micro-batch's pairs; `logprobs_N` carries the gradient."""
    samples, counts_N = 2 * len(batch.pair_weights_P), batch.mask_N > 0
    log_ratio_N = torch.where(counts_N, logprobs_N - batch.reference_logprobs_N, 0.0)
    log_ratio_S = sample_sums(log_ratio_N, batch.sample_of_N, samples)
    average = config.loss == "ipo" if config.length_average is None else config.length_average
    score_S = log_ratio_S
    if average:
        lengths_S = sample_sums(counts_N.to(log_ratio_N.dtype), batch.sample_of_N, samples)
        score_S = log_ratio_S / lengths_S.clamp(min=1)
    z_P = score_S[0::2] - score_S[1::2]
    if config.loss == "ipo":
        loss_P = (z_P - 1 / (2 * config.beta)).square()
    else:
        e = config.label_smoothing
        loss_P = -(1 - e) * logsigmoid(config.beta * z_P) - e * logsigmoid(-config.beta * z_P)
    loss = (loss_P * batch.pair_weights_P).sum()
    return LossOutput(loss, _margins(config.beta * log_ratio_S.detach(), batch.pair_weights_P) | {"loss": loss.detach()})


def _margins(rewards_S: torch.Tensor, weights_P: torch.Tensor) -> dict[str, torch.Tensor]:
    """Means over pairs of the rewards that the policy implies, beta (log policy - log reference)."""
    chosen_P, rejected_P = rewards_S[0::2], rewards_S[1::2]
    reported = {
        "chosen_reward": chosen_P,
        "rejected_reward": rejected_P,
        "margin": chosen_P - rejected_P,
        "accuracy": (chosen_P > rejected_P).to(weights_P.dtype),
    }
    return {name: (values_P * weights_P).sum() for name, values_P in reported.items()}
