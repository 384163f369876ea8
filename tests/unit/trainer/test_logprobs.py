"""Log-probabilities from hidden states are torch's log_softmax, in however many blocks and ranks the vocabulary is."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from ranks import run_ranks
from services.trainer.megatron import logprobs as module
from services.trainer.megatron.logprobs import Split, vocab_parallel_logprobs

VOCABULARY, HIDDEN = 300, 8
TARGETS = [0, 127, 128, 299, 3, 255]
"""The first and the last id, and both sides of the blocks' and the ranks' borders."""
WEIGHTS = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0, 1.5], dtype=torch.float64)
TEMPERATURES = torch.tensor([1.0, 0.7, 1.3, 1.0, 1.0, 2.0], dtype=torch.float64)
ONE_BLOCK, SMALL_BLOCKS = 1 << 20, 1
"""Bytes; the smallest block has 128 columns."""


def inputs(scale: float = 1.0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and a head, as leaves."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((len(TARGETS), HIDDEN), (VOCABULARY, HIDDEN))
    return tuple((scale * torch.randn(*size, generator=generator, dtype=torch.float64)).to(dtype) for size in sizes)


def ours(
    hidden: torch.Tensor, weight: torch.Tensor, split: Split | None = None, block_bytes: int = SMALL_BLOCKS
) -> tuple[torch.Tensor, ...]:
    """(log-probabilities, entropies, gradients of hidden and weight for the weighted log-probabilities)."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logprobs, entropies = vocab_parallel_logprobs(
        hidden, weight, torch.tensor(TARGETS), TEMPERATURES.to(torch.promote_types(hidden.dtype, torch.float32)),
        split or Split(VOCABULARY), block_bytes,
    )  # fmt: skip
    (logprobs * WEIGHTS.to(logprobs.dtype)).sum().backward()
    return logprobs.detach(), entropies, hidden.grad, weight.grad


def reference(hidden: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The same in float64 from all logits at once."""
    hidden, weight = (x.double().clone().requires_grad_() for x in (hidden, weight))
    all_NV = (hidden @ weight.t() / TEMPERATURES[:, None]).log_softmax(-1)
    chosen_N = all_NV.gather(1, torch.tensor(TARGETS)[:, None])[:, 0]
    (chosen_N * WEIGHTS).sum().backward()
    return chosen_N.detach(), -(all_NV.exp() * all_NV).sum(-1).detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("block_bytes", [SMALL_BLOCKS, ONE_BLOCK])
@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_blocks_give_log_softmax_and_its_gradients(scale: float, block_bytes: int) -> None:
    values = inputs(scale)
    for mine, exact in zip(ours(*values, block_bytes=block_bytes), reference(*values), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-9, atol=1e-9)


def test_float32_is_within_a_millionth() -> None:
    values = inputs(dtype=torch.float32)
    for mine, exact in zip(ours(*values), reference(*values), strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-6, atol=2e-6)


def test_the_gradient_is_the_functions_own_by_finite_differences() -> None:
    leaves = tuple(x.requires_grad_() for x in inputs())

    def function(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return vocab_parallel_logprobs(hidden, weight, torch.tensor(TARGETS), TEMPERATURES, Split(VOCABULARY), 1)[0]

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


def test_the_entropy_carries_no_gradient() -> None:
    hidden, weight = (x.requires_grad_() for x in inputs())
    logprobs, entropies = vocab_parallel_logprobs(hidden, weight, torch.tensor(TARGETS), TEMPERATURES, Split(VOCABULARY))
    assert (logprobs.requires_grad, entropies.requires_grad) == (True, False)


@given(st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3), min_size=1, max_size=5))
def test_large_logits_neither_overflow_nor_vanish(rows: list[list[float]]) -> None:
    targets, ones = torch.zeros(len(rows), dtype=torch.int64), torch.ones(len(rows))
    logprobs, entropies = vocab_parallel_logprobs(torch.tensor(rows), torch.eye(3), targets, ones, Split(3))
    assert bool(torch.isfinite(logprobs).all())
    assert bool((logprobs <= 1e-6).all())
    assert bool((entropies > -1e-2).all())


def test_half_precision_logits_are_reduced_in_float32() -> None:
    hidden, weight = inputs(dtype=torch.bfloat16)
    logits = (hidden @ weight.t()).double()
    exact = (logits / TEMPERATURES[:, None]).log_softmax(-1).gather(1, torch.tensor(TARGETS)[:, None])[:, 0]
    logprobs, entropies, *gradients = ours(hidden, weight)
    assert (logprobs.dtype, entropies.dtype, *(g.dtype for g in gradients)) == (torch.float32,) * 2 + (torch.bfloat16,) * 2
    torch.testing.assert_close(logprobs.double(), exact, rtol=1e-5, atol=1e-5)


def test_no_tokens_are_no_log_probabilities_and_no_gradient() -> None:
    hidden, weight = torch.empty(0, HIDDEN, requires_grad=True), torch.ones(VOCABULARY, HIDDEN, requires_grad=True)
    targets, temperatures = torch.empty(0, dtype=torch.int64), torch.empty(0)
    logprobs, entropies = vocab_parallel_logprobs(hidden, weight, targets, temperatures, Split(VOCABULARY))
    logprobs.sum().backward()
    assert (logprobs.shape, entropies.shape, weight.grad.any().item()) == ((0,), (0,), False)


def test_no_block_of_logits_is_larger_than_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, gradient = [], module._gradient
    absorb = module._absorb

    def noting(function):
        return lambda logits_NB, *rest: sizes.append(logits_NB.numel()) or function(logits_NB, *rest)

    monkeypatch.setattr(module, "_absorb", noting(absorb))
    monkeypatch.setattr(module, "_gradient", noting(gradient))
    ours(*inputs(), block_bytes=4 * 128 * len(TARGETS))
    assert sizes == [len(TARGETS) * columns for columns in (128, 128, 44)] * 2


def split_over_ranks(rank: int, size: int, store_file: str) -> tuple[np.ndarray, ...]:
    """`ours` on this rank's rows; the last rank's last rows are padding, with weights that must not count."""
    dist.init_process_group("gloo", init_method=f"file://{store_file}", rank=rank, world_size=size)
    hidden, weight = inputs()
    rows = -(-VOCABULARY // size) + 1
    padded = torch.cat([weight, torch.full((rows * size - VOCABULARY, HIDDEN), 7.0, dtype=torch.float64)])
    split = Split(min(rows, VOCABULARY - rank * rows), rank * rows, dist.group.WORLD)
    return tuple(x.numpy() for x in ours(hidden, padded[rank * rows : (rank + 1) * rows], split))


@pytest.mark.parametrize("size", [2, 3])
def test_a_split_and_padded_vocabulary_gives_what_the_whole_one_does(size: int, tmp_path: Path) -> None:
    logprobs, entropies, hidden_grad, weight_grad = reference(*inputs())
    answers = run_ranks(split_over_ranks, size, str(tmp_path / "store"))
    parts = [tuple(torch.from_numpy(array) for array in answer) for answer in answers]
    for their_logprobs, their_entropies, *_ in parts:
        torch.testing.assert_close(their_logprobs, logprobs)
        torch.testing.assert_close(their_entropies, entropies)
    torch.testing.assert_close(sum(part[2] for part in parts), hidden_grad)
    gradient = torch.cat([part[3] for part in parts])
    torch.testing.assert_close(gradient[:VOCABULARY], weight_grad)
    assert not gradient[VOCABULARY:].any(), "padding must not learn"
