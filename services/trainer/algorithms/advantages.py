"""Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438), and statistics over the global batch.

Shape suffixes: N actions, one after the other and sample after sample; S samples.
"""

from collections.abc import Callable, Iterable

import torch

SumOverDataParallel = Callable[[torch.Tensor], torch.Tensor]
"""Adds up every data-parallel rank's tensor."""

WHITENING_EPSILON = 1e-8


def generalized_advantages(
    rewards_N: torch.Tensor, values_N: torch.Tensor, sample_of_N: torch.Tensor, *, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(advantages, returns) [N], float64. A sample's tokens are consecutive; the value after its last one is 0.

        delta_t = r_t + gamma V_{t+1} - V_t        A_t = delta_t + gamma lam A_{t+1}        returns = A + V

    The recursion is a sum of discounted deltas, which doubles its reach with every turn of the loop: log2(longest) turns.
    """
    rewards_N, values_N = rewards_N.double(), values_N.double()
    advantages_N = rewards_N + gamma * _later(values_N, sample_of_N, 1) - values_N
    longest = int(torch.bincount(sample_of_N).max()) if len(sample_of_N) else 0
    reach, discount = 1, gamma * lam
    while reach < longest:
        advantages_N = advantages_N + discount * _later(advantages_N, sample_of_N, reach)
        reach, discount = 2 * reach, discount * discount
    return advantages_N, advantages_N + values_N


def _later(values_N: torch.Tensor, sample_of_N: torch.Tensor, steps: int) -> torch.Tensor:
    """The value `steps` tokens later in the same sample [N]; 0 beyond its end."""
    shifted_N = torch.zeros_like(values_N)
    same = sample_of_N[steps:] == sample_of_N[:-steps]
    shifted_N[:-steps] = torch.where(same, values_N[steps:], 0.0)
    return shifted_N


def mean_and_variance(
    values: Iterable[torch.Tensor], sum_over_data_parallel: SumOverDataParallel, *, zeros: int = 0
) -> tuple[float, float]:
    """Mean and population variance over all parts of all ranks, and over so many `zeros` besides; 0 and 0 of nothing."""
    sums = torch.zeros(3, dtype=torch.float64)
    for part_N in values:
        part_N = part_N.double().cpu()
        sums += torch.stack([torch.tensor(float(len(part_N))).double(), part_N.sum(), part_N.square().sum()])
    count, total, squares = sum_over_data_parallel(sums).tolist()
    count = max(count + zeros, 1.0)
    mean = total / count
    return mean, max(squares / count - mean * mean, 0.0)


def whitened(values_N: torch.Tensor, mean: float, variance: float) -> torch.Tensor:
    """Values [N] with that mean moved to 0 and that variance to 1."""
    return (values_N - mean) * (variance + WHITENING_EPSILON) ** -0.5


def explained_variance(error_variance: float, return_variance: float) -> float:
    """1 for a critic that foresees every return, 0 for one as good as their mean, negative for a worse one. 0 if all
    returns are equal: there is nothing to explain."""
    return 1 - error_variance / return_variance if return_variance > 0 else 0.0
