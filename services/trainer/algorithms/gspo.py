"""Group sequence policy optimisation (Zheng et al. 2025, arXiv:2507.18071): one clipped ratio for a whole response.

The ratio is the geometric mean of the tokens', so that its scale does not depend on the response's length.
"""

import torch

from baton.config.policy_gradient import GspoConfig
from services.trainer.algorithms.clipped import clipped_loss
from services.trainer.algorithms.divergence import reference_kl
from services.trainer.algorithms.losses import LossOutput, TokenBatch


def gspo_loss(logprobs_N: torch.Tensor, entropies_N: torch.Tensor, batch: TokenBatch, config: GspoConfig) -> LossOutput:
    """Clipped policy-gradient loss on sequence ratios; `logprobs_N` carries the gradient."""
    output = clipped_loss(logprobs_N, entropies_N, batch, config, per_response=True)
    return LossOutput(output.loss, output.sums | reference_kl(logprobs_N, batch) | {"loss": output.loss.detach()})
