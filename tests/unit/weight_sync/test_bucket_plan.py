"""The plan of a broadcast: every part in order, in buckets that both sides cut alike."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baton.api.common.v1 import weights_pb2
from services.common.weight_sync.plan import (
    ALIGNMENT,
    Part,
    Region,
    as_matrix,
    cut,
    describe,
    described,
    payload_bytes,
    plan_buckets,
)  # fmt: skip

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.float64])
SHAPES = st.lists(st.integers(1, 9), max_size=3).map(tuple)
PARTS = st.lists(st.tuples(DTYPES, SHAPES), max_size=12).map(
    lambda drawn: [Part.whole(f"t{i}", dtype, shape) for i, (dtype, shape) in enumerate(drawn)]
)
LIMITS = st.integers(0, 40).map(lambda blocks: blocks * ALIGNMENT)


@given(PARTS, LIMITS)
def test_the_plan_covers_all_parts_once_and_in_order(parts: list[Part], limit: int) -> None:
    buckets = plan_buckets(parts, limit)
    assert [slot.part for bucket in buckets for slot in bucket.slots] == parts
    assert payload_bytes(buckets) == sum(part.nbytes for part in parts)


@given(PARTS, LIMITS)
def test_a_bucket_is_within_the_limit_unless_it_holds_one_larger_part(parts: list[Part], limit: int) -> None:
    for bucket in plan_buckets(parts, limit):
        assert bucket.nbytes <= limit or len(bucket.slots) == 1


@given(PARTS, LIMITS)
def test_parts_in_a_bucket_are_aligned_and_do_not_overlap(parts: list[Part], limit: int) -> None:
    for bucket in plan_buckets(parts, limit):
        end = 0
        for slot in bucket.slots:
            assert slot.offset % ALIGNMENT == 0
            assert slot.offset >= end
            end = slot.offset + slot.part.nbytes
        assert end <= bucket.nbytes


@given(PARTS, LIMITS)
def test_no_bucket_could_take_the_next_ones_first_part(parts: list[Part], limit: int) -> None:
    for bucket, following in pairwise(plan_buckets(parts, limit)):
        assert bucket.nbytes + following.slots[0].part.nbytes > limit


@given(PARTS, LIMITS)
def test_what_is_written_through_a_slots_view_is_read_through_it(parts: list[Part], limit: int) -> None:
    for bucket in plan_buckets(parts, limit):
        memory = torch.zeros(bucket.nbytes, dtype=torch.uint8)
        for number, slot in enumerate(bucket.slots):
            slot.view(memory).fill_(number + 1)
        for number, slot in enumerate(bucket.slots):
            view = slot.view(memory)
            assert (view.dtype, tuple(view.shape)) == (slot.part.dtype, slot.part.size)
            assert bool((view == number + 1).all())


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 200))
def test_a_region_is_cut_between_rows_into_pieces_that_are_the_whole(rows: int, columns: int, limit: int) -> None:
    matrix = torch.arange(rows * columns, dtype=torch.int64).view(rows, columns).to(torch.float32)
    pieces = list(cut([Region(Part.whole("x", torch.bfloat16, (rows, columns)), matrix)], limit))
    assert torch.equal(torch.cat([piece.matrix for piece in pieces]), matrix)
    assert [piece.part.rows[0] for piece in pieces] == [0, *(piece.part.rows[1] for piece in pieces[:-1])]
    assert all(piece.part.nbytes <= limit or piece.part.size[0] == 1 for piece in pieces)


def test_a_region_without_elements_is_left_out() -> None:
    assert not list(cut([Region(Part("x", torch.float32, (4, 4), (4, 4), (0, 4)), torch.empty(0, 4))], 64))


@given(PARTS)
def test_a_description_survives_the_wire(parts: list[Part]) -> None:
    halves = [
        part
        for whole in parts
        for part in (
            Part(whole.name, whole.dtype, whole.shape, (0, 1), whole.columns),
            Part(whole.name, whole.dtype, whole.shape, (1, whole.rows[1]), whole.columns),
        )
    ]
    sender = weights_pb2.WeightSender()
    describe(halves, sender)
    assert described(weights_pb2.WeightSender.FromString(sender.SerializeToString())) == halves


@pytest.mark.parametrize("shape", [(), (5,), (5, 3), (5, 3, 2)], ids=str)
def test_a_tensor_seen_as_a_matrix_shares_its_memory_and_has_its_parts_size(shape: tuple[int, ...]) -> None:
    tensor = torch.zeros(shape)
    matrix = as_matrix(tensor)
    assert tuple(matrix.shape) == Part.whole("x", torch.float32, shape).size
    assert matrix.data_ptr() == tensor.data_ptr()
