"""Parts into parameters: every rectangle that a receiver holds is copied from whatever parts it comes in."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import DigestMismatchError, InvalidRequestError
from services.common.weight_sync.loading import Comparison, Copies, DirectSink, LoaderSink
from services.common.weight_sync.plan import Bucket, Part, Region, as_matrix, plan_buckets

F32 = torch.float32
CPU = torch.device("cpu")


@dataclass
class Arrived:
    """What a lane has when its buckets are there."""

    buckets: list[Bucket]
    views: list[list[torch.Tensor]]
    device: torch.device = CPU


def edges(size: int, cuts: set[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(sorted({0, size, *(cut for cut in cuts if 0 < cut < size)})))


def grid(shape: tuple[int, int], rows: set[int], columns: set[int]) -> list[Part]:
    """A tensor cut along these rows and columns."""
    return [Part("x", F32, shape, r, c) for r in edges(shape[0], rows) for c in edges(shape[1], columns)]


def arrived(parts: list[Part], tensor: torch.Tensor) -> tuple[list[Bucket], list[list[torch.Tensor]]]:
    """Buckets of these parts, and their views, filled from the tensor."""
    buckets = plan_buckets(parts, 64)
    memories = [torch.zeros(bucket.nbytes, dtype=torch.uint8) for bucket in buckets]
    views = [[slot.view(memory) for slot in bucket.slots] for bucket, memory in zip(buckets, memories, strict=True)]
    for bucket, own in zip(buckets, views, strict=True):
        for slot, view in zip(bucket.slots, own, strict=True):
            view.copy_(as_matrix(tensor)[slice(*slot.part.rows), slice(*slot.part.columns)])
    return buckets, views


CUTS = st.sets(st.integers(0, 9), max_size=3)


@given(st.integers(1, 9), st.integers(1, 9), CUTS, CUTS, CUTS, CUTS)
def test_a_receiver_gets_its_rectangles_out_of_any_other_rectangles(
    rows: int, columns: int, sent_rows: set[int], sent_columns: set[int], held_rows: set[int], held_columns: set[int]
) -> None:  # fmt: skip
    tensor = torch.arange(rows * columns, dtype=F32).view(rows, columns)
    buckets, views = arrived(grid((rows, columns), sent_rows, sent_columns), tensor)
    held = [Region(part, torch.full(part.size, -1.0)) for part in grid((rows, columns), held_rows, held_columns)]
    sink = DirectSink(Copies([buckets], held), [Arrived(buckets, views)], CPU)
    for _ in range(2):
        for index, own in enumerate(views):
            sink.load(0, index, own)
        for region in held:
            assert torch.equal(region.matrix, tensor[slice(*region.part.rows), slice(*region.part.columns)])


def test_an_update_that_lacks_what_a_receiver_holds_is_refused() -> None:
    held = [Region(Part.whole("x", F32, (4, 4)), torch.zeros(4, 4)), Region(Part.whole("y", F32, (3,)), torch.zeros(3, 1))]
    with pytest.raises(InvalidRequestError, match=r"16 of the 19 elements.*must run the same model"):
        Copies([plan_buckets([Part.whole("x", F32, (4, 4))], 64)], held)


def test_a_tensor_that_two_parameters_hold_is_copied_to_both() -> None:
    tensor, held = torch.randn(4, 4), [Region(Part.whole("x", F32, (4, 4)), torch.zeros(4, 4)) for _ in range(2)]
    buckets, views = arrived([Part.whole("x", F32, (4, 4))], tensor)
    DirectSink(Copies([buckets], held), [Arrived(buckets, views)], CPU).load(0, 0, views[0])
    assert all(torch.equal(region.matrix, tensor) for region in held)


def test_a_comparison_names_the_tensor_of_which_one_bit_differs() -> None:
    tensor = torch.randn(4, 4)
    held = [Region(Part("x", F32, (4, 4), (0, 2), (0, 4)), tensor[:2].clone()),
            Region(Part("x", F32, (4, 4), (2, 4), (0, 4)), tensor[2:].clone())]  # fmt: skip
    buckets, views = arrived([Part.whole("x", F32, (4, 4))], tensor)

    def compared() -> int:
        comparison = Comparison(Copies([buckets], held), [buckets])
        comparison.load(0, 0, views[0])
        return comparison.finish()

    assert compared() == tensor.nbytes
    held[1].matrix.view(torch.int32)[1, 3] ^= 1
    with pytest.raises(DigestMismatchError, match="1 tensors in the engine are not what was sent, bit for bit: x"):
        compared()


def test_a_comparison_tells_the_two_zeros_apart() -> None:
    held = [Region(Part.whole("x", F32, (1, 1)), torch.zeros(1, 1))]
    buckets, views = arrived([Part.whole("x", F32, (1, 1))], -torch.zeros(1, 1))
    comparison = Comparison(Copies([buckets], held), [buckets])
    comparison.load(0, 0, views[0])
    with pytest.raises(DigestMismatchError):
        comparison.finish()


@given(st.integers(1, 9), st.integers(1, 9), CUTS, CUTS, st.randoms())
def test_a_loader_gets_whole_tensors_once_whatever_the_order_of_their_parts(
    rows: int, columns: int, sent_rows: set[int], sent_columns: set[int], random: object
) -> None:  # fmt: skip
    tensor = torch.randn(rows, columns)
    parts = grid((rows, columns), sent_rows, sent_columns)
    random.shuffle(parts)
    buckets, views = arrived(parts, tensor)
    loaded: list[tuple[str, torch.Tensor]] = []
    sink = LoaderSink(loaded.extend, [buckets])
    for index, own in enumerate(views):
        assert not loaded
        sink.load(0, index, own)
        for view in own:
            view.fill_(-1)  # the memory is used again
    [(name, whole)] = loaded
    assert name == "x"
    assert torch.equal(whole, tensor)
