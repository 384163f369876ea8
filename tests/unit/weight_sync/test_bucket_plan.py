"""The plan of a broadcast: every tensor in order, in buckets that both sides cut alike."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baton.api.common.v1 import weights_pb2
from services.common.weight_sync.plan import ALIGNMENT, describe, payload_bytes, plan_buckets

DTYPES = st.sampled_from(["float32", "bfloat16", "int8", "float64"])
TENSORS = st.lists(st.tuples(DTYPES, st.lists(st.integers(0, 9), max_size=3)), max_size=12).map(
    lambda drawn: [
        weights_pb2.WeightTensor(name=f"t{i}", dtype=dtype, shape=shape) for i, (dtype, shape) in enumerate(drawn)
    ]
)
LIMITS = st.integers(0, 40).map(lambda blocks: blocks * ALIGNMENT)


def nbytes(tensor: weights_pb2.WeightTensor) -> int:
    return torch.empty(tuple(tensor.shape), dtype=getattr(torch, tensor.dtype)).nbytes


@given(TENSORS, LIMITS)
def test_the_plan_covers_all_tensors_once_and_in_order(tensors: list[weights_pb2.WeightTensor], limit: int) -> None:
    slots = [slot for bucket in plan_buckets(tensors, limit) for slot in bucket.slots]
    assert [(slot.name, str(slot.dtype), slot.shape) for slot in slots] == [
        (tensor.name, f"torch.{tensor.dtype}", tuple(tensor.shape)) for tensor in tensors
    ]
    assert payload_bytes(plan_buckets(tensors, limit)) == sum(map(nbytes, tensors))


@given(TENSORS, LIMITS)
def test_a_bucket_is_within_the_limit_unless_it_holds_one_larger_tensor(tensors: list, limit: int) -> None:
    for bucket in plan_buckets(tensors, limit):
        assert bucket.nbytes <= limit or len(bucket.slots) == 1


@given(TENSORS, LIMITS)
def test_tensors_in_a_bucket_are_aligned_and_do_not_overlap(tensors: list, limit: int) -> None:
    for bucket in plan_buckets(tensors, limit):
        end = 0
        for slot in bucket.slots:
            assert slot.offset % ALIGNMENT == 0
            assert slot.offset >= end
            end = slot.offset + slot.nbytes
        assert end <= bucket.nbytes


@given(TENSORS, LIMITS)
def test_no_bucket_could_take_the_next_ones_first_tensor(tensors: list, limit: int) -> None:
    buckets = plan_buckets(tensors, limit)
    for bucket, following in pairwise(buckets):
        assert bucket.nbytes + following.slots[0].nbytes > limit


@given(TENSORS, LIMITS)
def test_what_is_written_through_a_slots_view_is_read_through_it(tensors: list, limit: int) -> None:
    for bucket in plan_buckets(tensors, limit):
        memory = torch.zeros(bucket.nbytes, dtype=torch.uint8)
        for number, slot in enumerate(bucket.slots):
            slot.view(memory).fill_(number + 1)
        for number, slot in enumerate(bucket.slots):
            view = slot.view(memory)
            assert (view.dtype, tuple(view.shape)) == (slot.dtype, slot.shape)
            assert bool((view == number + 1).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_description_survives_the_wire(dtype: torch.dtype) -> None:
    shapes = [("a", (3, 5)), ("b", (7,)), ("c", ())]
    wire = [weights_pb2.WeightTensor.FromString(t.SerializeToString()) for t in describe(iter(shapes), dtype)]
    slots = [slot for bucket in plan_buckets(wire, 1 << 20) for slot in bucket.slots]
    assert [(slot.name, slot.shape, slot.dtype) for slot in slots] == [(name, shape, dtype) for name, shape in shapes]
