"""Vocabulary-parallel log-probabilities: torch's log_softmax, whether the vocabulary is whole or split over ranks."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from ranks import run_ranks
from services.trainer.megatron.logprobs import _VocabParallelLogprobs, vocab_parallel_logprobs

VOCABULARY = 11
TARGETS = [0, 5, 6, 10, 3]
"""The first and the last id, and both sides of the split."""


def logits(scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(len(TARGETS), VOCABULARY, generator=torch.Generator().manual_seed(0))


def reference(values_NV: torch.Tensor, weights_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(log-probabilities, entropies, gradient of the weighted log-probabilities) in float64."""
    leaf = values_NV.double().requires_grad_()
    all_NV = leaf.log_softmax(-1)
    chosen_N = all_NV.gather(1, torch.tensor(TARGETS)[:, None])[:, 0]
    (chosen_N * weights_N.double()).sum().backward()
    entropies_N = -(all_NV.exp() * all_NV).sum(-1)
    return chosen_N.detach(), entropies_N.detach(), leaf.grad


WEIGHTS = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0])


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_a_whole_vocabulary_gives_log_softmax_and_its_gradient(scale: float) -> None:
    values = logits(scale).requires_grad_()
    logprobs, entropies = vocab_parallel_logprobs(values, torch.tensor(TARGETS))
    (logprobs * WEIGHTS).sum().backward()
    expected_logprobs, expected_entropies, expected_gradient = reference(values.detach(), WEIGHTS)
    torch.testing.assert_close(logprobs.double(), expected_logprobs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropies.double(), expected_entropies, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values.grad.double(), expected_gradient, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_the_functions_own_by_finite_differences() -> None:
    values, targets = logits().double().requires_grad_(), torch.tensor(TARGETS)
    assert torch.autograd.gradcheck(lambda x: _VocabParallelLogprobs.apply(x, targets, 0, None)[0], (values,))


def test_the_entropy_carries_no_gradient() -> None:
    values = logits().requires_grad_()
    logprobs, entropies = vocab_parallel_logprobs(values, torch.tensor(TARGETS))
    assert (logprobs.requires_grad, entropies.requires_grad) == (True, False)


@given(st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3), min_size=1, max_size=5))
def test_large_logits_neither_overflow_nor_vanish(rows: list[list[float]]) -> None:
    logprobs, entropies = vocab_parallel_logprobs(torch.tensor(rows), torch.zeros(len(rows), dtype=torch.int64))
    assert bool(torch.isfinite(logprobs).all())
    assert bool((logprobs <= 1e-6).all())
    assert bool((entropies > -1e-2).all())


def test_half_precision_is_computed_in_float32() -> None:
    values = logits().bfloat16()
    exact, _, _ = reference(values.float(), WEIGHTS)
    logprobs, entropies = vocab_parallel_logprobs(values, torch.tensor(TARGETS))
    assert (logprobs.dtype, entropies.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(logprobs.double(), exact, rtol=1e-5, atol=1e-5)


def test_no_tokens_are_no_log_probabilities() -> None:
    logprobs, entropies = vocab_parallel_logprobs(torch.empty(0, VOCABULARY), torch.empty(0, dtype=torch.int64))
    assert (logprobs.shape, entropies.shape) == ((0,), (0,))


def split_over_ranks(rank: int, size: int, store_file: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """This rank's (log-probabilities, entropies, gradient) of its columns; the last rank's last column is padding."""
    dist.init_process_group("gloo", init_method=f"file://{store_file}", rank=rank, world_size=size)
    padded = torch.cat([logits(), torch.full((len(TARGETS), 1), -torch.inf)], dim=1)
    width = padded.shape[1] // size
    part = padded[:, rank * width : (rank + 1) * width].clone().requires_grad_()
    logprobs, entropies = vocab_parallel_logprobs(part, torch.tensor(TARGETS), first_id=rank * width, group=dist.group.WORLD)
    (logprobs * WEIGHTS).sum().backward()
    return logprobs.detach().numpy(), entropies.numpy(), part.grad.numpy()


@pytest.mark.parametrize("size", [2, 3])
def test_a_split_and_padded_vocabulary_gives_what_the_whole_one_does(size: int, tmp_path: Path) -> None:
    whole = logits().requires_grad_()
    logprobs, entropies = vocab_parallel_logprobs(whole, torch.tensor(TARGETS))
    (logprobs * WEIGHTS).sum().backward()
    answers = run_ranks(split_over_ranks, size, str(tmp_path / "store"))
    parts = [tuple(torch.from_numpy(array) for array in answer) for answer in answers]
    for their_logprobs, their_entropies, _ in parts:
        torch.testing.assert_close(their_logprobs, logprobs.detach(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(their_entropies, entropies, rtol=1e-6, atol=1e-6)
    gradient = torch.cat([gradient for _, _, gradient in parts], dim=1)
    torch.testing.assert_close(gradient[:, :VOCABULARY], whole.grad, rtol=1e-6, atol=1e-6)
    assert not gradient[:, VOCABULARY:].any(), "padding must not learn"
