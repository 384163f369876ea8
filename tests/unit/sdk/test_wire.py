"""The wire form of samples, against the generated code: either reads what the other writes."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton import wire
from baton.api.buffer.v1 import buffer_pb2
from baton.api.common.v1 import samples_pb2
from baton.bulk import BulkMessage, Encoded, serialized
from baton.errors import InvalidRequestError
from baton.samples import RAGGED_COLUMNS, Ragged, Samples

TEXT = st.text(max_size=5)


@st.composite
def batches(draw):
    """Samples with some of the columns, empty rows included."""
    lengths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=6))
    size, tokens = len(lengths), sum(lengths)
    rows = np.asarray(lengths, np.uint32)
    columns = {
        "group_ids": [draw(TEXT) or "g" for _ in lengths],
        "prompt_ids": Ragged(np.arange(tokens, dtype=np.int32), rows),
        "response_ids": Ragged(np.arange(tokens, dtype=np.int32) - 2, rows),
        "rollout_logprobs": Ragged(np.linspace(-1, 0, tokens, dtype=np.float32), rows),
        "loss_mask": Ragged(np.arange(tokens, dtype=np.int64).astype(np.uint8) % 2, rows),
        "rewards": np.arange(size, dtype=np.float32),
        "policy_version_max": np.arange(size, dtype=np.int64) + 2**40,
    }
    chosen = draw(st.sets(st.sampled_from(sorted(columns))))
    return Samples(sample_ids=[f"s{i}" for i in range(size)], **{name: columns[name] for name in chosen})


def joined(samples: Samples) -> bytes:
    elements, light = wire.encode(samples)
    return b"".join([*elements, light])


@given(batches())
@settings(deadline=None)  # other work on the machine is no failure
def test_the_generated_code_reads_what_we_write(samples):
    assert samples_pb2.SampleBatch.FromString(joined(samples)) == samples.to_proto()


@given(batches(), st.integers(0, 5), st.integers(0, 5))
@settings(deadline=None)
def test_parts_are_written_as_if_they_were_one(samples, first, second):
    cuts = sorted({0, len(samples), *(cut for cut in (first, second) if cut < len(samples))})
    parts = [samples.take(range(start, end)) for start, end in pairwise(cuts)]
    head = buffer_pb2.LeaseResponse(lease_id="p0-s0-a1")
    assert serialized(head, Encoded.of(*parts)) == serialized(head, Encoded.of(samples))


@given(batches())
@settings(deadline=None)
def test_we_read_what_we_write_and_what_the_generated_code_writes(samples):
    for raw in (joined(samples), samples.to_proto().SerializeToString()):
        assert wire.decode(memoryview(raw)).to_proto() == samples.to_proto()


@given(batches())
@settings(deadline=None)
def test_the_light_part_is_the_batch_without_the_elements_of_arrays(samples):
    _, light = wire.encode(samples)
    expected = samples.to_proto()
    for name in filter(expected.HasField, RAGGED_COLUMNS):
        getattr(expected, name).ClearField("values")
    assert samples_pb2.SampleBatch.FromString(light) == expected


@given(batches())
@settings(deadline=None)
def test_a_message_around_samples_is_what_the_generated_code_makes_of_it(samples):
    head = buffer_pb2.LeaseResponse(lease_id="p0-s0-a1", wrapped=bytes(len(samples)), more=True)
    raw = serialized(head, Encoded.of(samples))
    whole = buffer_pb2.LeaseResponse.FromString(raw)
    assert whole.samples == samples.to_proto()
    for written in (raw, whole.SerializeToString()):
        message = BulkMessage.lease_response(written)
        assert message.head == head
        assert message.samples().to_proto() == samples.to_proto()


def test_elements_are_not_copied_where_they_arrive():
    samples = Samples(sample_ids=["a"], response_ids=Ragged.of([range(1000)], np.int32))
    raw = joined(samples)
    decoded = wire.decode(memoryview(raw))
    start = np.frombuffer(raw, np.uint8).__array_interface__["data"][0]
    assert 0 <= decoded.response_ids.values.__array_interface__["data"][0] - start < len(raw)


@pytest.mark.parametrize("cut", [1, 3, 20, 40])
def test_a_message_that_was_cut_off_is_refused(cut):
    raw = joined(Samples(sample_ids=["a"], response_ids=Ragged.of([range(10)], np.int32)))
    with pytest.raises(InvalidRequestError):
        wire.decode(memoryview(raw[:-cut]))


def test_fields_of_foreign_kinds_are_refused():
    with pytest.raises(InvalidRequestError, match="field 1 of a message has wire type 5"):
        list(wire.fields(memoryview(b"\x0d\0\0\0\0")))
