"""Training of a reward model: Bradley and Terry's loss on pairs of scores (Stiennon et al. 2020, arXiv:2009.01325).

Shape suffixes: S samples, P pairs: sample 2p is the chosen one of pair p, sample 2p + 1 the rejected one.
"""

import torch
from torch.nn.functional import logsigmoid

from baton.config.algorithm import RewardModelConfig
from services.trainer.algorithms.losses import LossOutput


def reward_model_loss(scores_S: torch.Tensor, pair_weights_P: torch.Tensor, config: RewardModelConfig) -> LossOutput:
    """-log sigmoid(chosen - rejected), plus `center_coef` x (chosen + rejected)^2 (Eisenstein et al. 2023,
    arXiv:2312.09244). `scores_S` carries the gradient; the weights sum to 1 over the global batch."""
    chosen_P, rejected_P = scores_S[0::2], scores_S[1::2]
    loss_P = -logsigmoid(chosen_P - rejected_P) + config.center_coef * (chosen_P + rejected_P).square()
    loss = (loss_P * pair_weights_P).sum()
    with torch.no_grad():
        reported = {
            "accuracy": (chosen_P > rejected_P).to(loss_P.dtype),
            "margin": chosen_P - rejected_P,
            "chosen_score": chosen_P,
            "rejected_score": rejected_P,
        }
        sums = {name: (values_P * pair_weights_P).sum() for name, values_P in reported.items()}
    return LossOutput(loss, sums | {"loss": loss.detach()})
