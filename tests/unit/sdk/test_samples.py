"""Samples: what goes onto the wire comes back, in messages that gRPC takes, and a malformed batch is refused by name."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.api.common.v1 import samples_pb2 as pb
from baton.errors import InvalidRequestError
from baton.samples import Ragged, Samples

GRPC_LIMIT = 4 * 1024 * 1024
RAGGED = {"prompt_ids": np.int32, "response_ids": np.int32}
PER_TOKEN = {"rollout_logprobs": np.float32, "reference_logprobs": np.float32, "loss_mask": np.uint8}
SCALARS = {
    "episode_ids": np.int64, "rewards": np.float32, "reward_status": np.uint8, "group_reward_mean": np.float32,
    "group_reward_std": np.float32, "group_sizes": np.int32, "finish_reasons": np.uint8, "policy_version_min": np.int64,
    "policy_version_max": np.int64, "temperatures": np.float32,
}  # fmt: skip
TEXTS = ("group_ids", "weights_digests", "metadata")


def random_samples(size: int, seed: int, absent: frozenset[str] = frozenset()) -> Samples:
    """All columns but the `absent` ones, filled with anything that the column's type can hold."""
    rng = np.random.default_rng(seed)
    lengths = {"prompt_ids": rng.integers(0, 5, size), "response_ids": rng.integers(0, 5, size)}

    def values(dtype: type, count: int) -> np.ndarray:
        if np.issubdtype(dtype, np.floating):
            return rng.choice(np.array([0.0, -1.5, np.nan, np.inf, 3e38], dtype), count)
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, count, dtype, endpoint=True)

    columns: dict[str, Any] = {name: values(dtype, size) for name, dtype in SCALARS.items()}
    for name, dtype in (RAGGED | PER_TOKEN).items():
        own = lengths[name if name in RAGGED else "response_ids"].astype(np.uint32)
        columns[name] = Ragged(values(dtype, int(own.sum())), own)
    columns |= {name: [rng.choice(["", "x", "\u00e9\u4e2d" * 3]) for _ in range(size)] for name in TEXTS}
    return Samples(
        [f"s{i}" for i in range(size)], **{name: column for name, column in columns.items() if name not in absent}
    )


OPTIONAL = [*RAGGED, *PER_TOKEN, *SCALARS, *TEXTS]
BATCHES = st.builds(random_samples, st.integers(1, 9), st.integers(0, 1000), st.frozensets(st.sampled_from(OPTIONAL)))


def listed(samples: Samples) -> dict[str, Any]:
    """Columns as plain lists (ragged ones as bytes of their rows), so that == compares them; NaN equals itself in bytes."""
    answer: dict[str, Any] = {"sample_ids": samples.sample_ids}
    for name in OPTIONAL:
        column = getattr(samples, name)
        if isinstance(column, Ragged):
            answer[name] = [(row.dtype.str, row.tobytes()) for row in column.rows()]
        elif isinstance(column, np.ndarray):
            answer[name] = [(column.dtype.str, value.tobytes()) for value in column]
        else:
            answer[name] = column
    return answer


def row(samples: Samples, i: int) -> dict[str, Any]:
    return {name: column and column[i] for name, column in listed(samples).items()}


@given(BATCHES)
def test_what_is_put_on_the_wire_comes_back_whichever_columns_are_absent(samples: Samples) -> None:
    wire = samples.to_proto().SerializeToString()
    assert listed(Samples.from_proto(pb.SampleBatch.FromString(wire))) == listed(samples)


def test_values_are_little_endian_and_of_the_documented_type_whatever_the_caller_gave() -> None:
    samples = Samples(["s"], prompt_ids=Ragged.of([[1, 2]], np.int64), rewards=np.array([0.5], np.float64))
    message = samples.to_proto()
    assert message.prompt_ids.values == b"\1\0\0\0\2\0\0\0"
    assert message.rewards == np.array([0.5], "<f4").tobytes()


def test_a_batch_of_none_is_legal() -> None:
    assert len(Samples.from_proto(Samples([]).to_proto())) == 0


@given(BATCHES, st.data())
def test_take_gives_the_chosen_rows_in_that_order_with_repeats(samples: Samples, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, len(samples) - 1), max_size=12))
    taken = samples.take(indices)
    assert [row(taken, i) for i in range(len(taken))] == [row(samples, i) for i in indices]


@given(BATCHES, st.data())
def test_take_of_a_range_equals_take_of_its_rows_one_by_one(samples: Samples, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(samples) - 1))
    end = data.draw(st.integers(start + 1, len(samples)))
    one_by_one = Samples.concat([samples.take([i]) for i in range(start, end)])
    assert listed(samples.take(range(start, end))) == listed(one_by_one)


def test_concat_refuses_a_column_that_only_some_parts_have() -> None:
    with pytest.raises(ValueError, match=r"samples\.rewards is present in some parts only"):
        Samples.concat([Samples(["a"], rewards=np.zeros(1, np.float32)), Samples(["b"])])


def sampled(temperature: float, uncut: bool) -> Samples:
    """One token, of probabilities that differ by column."""
    columns = {"rollout_logprobs": -1.0, "model_logprobs": -2.0} | ({"uncut_logprobs": -3.0} if uncut else {})
    rows = {name: Ragged.of([[value]], np.float32) for name, value in columns.items()}
    return Samples(["a"], response_ids=Ragged.of([[5]], np.int32), temperatures=np.float32([temperature]), **rows)


def test_where_one_part_tells_the_uncut_log_probabilities_all_do_from_the_column_that_has_them() -> None:
    parts = [sampled(0.7, uncut=True), sampled(0.7, uncut=False), sampled(1.0, uncut=False), sampled(0.0, uncut=False)]
    assert Samples.concat(parts).uncut_logprobs.values.tolist() == [-3, -1, -2, -2]
    assert Samples.concat(parts[1:]).uncut_logprobs is None


@given(BATCHES, st.integers(0, 4000))
def test_split_keeps_order_and_content_and_no_part_of_several_samples_is_over_the_limit(
    samples: Samples, limit: int
) -> None:
    parts = list(samples.split(limit))
    assert listed(Samples.concat(parts)) == listed(samples)
    assert all(len(part) == 1 or part.to_proto().ByteSize() <= limit for part in parts)


@pytest.mark.parametrize("column", ["metadata", "group_ids", "weights_digests", "sample_ids"])
@pytest.mark.parametrize("character", ["x", "\u00e9", "\u4e2d", "\U0001f600"], ids=ascii)
def test_split_counts_the_bytes_of_every_text_not_its_characters(column: str, character: str) -> None:
    texts = [character * 1000 + str(i) for i in range(6000)]
    samples = Samples(**({"sample_ids": [str(i) for i in range(6000)]} | {column: texts}))
    assert max(part.to_proto().ByteSize() for part in samples.split()) < GRPC_LIMIT


def test_split_counts_every_column_of_very_many_small_samples() -> None:
    samples = random_samples(40_000, seed=0)
    parts = list(samples.split())
    assert len(parts) > 1
    assert max(part.to_proto().ByteSize() for part in parts) < GRPC_LIMIT


def test_a_sample_that_is_larger_than_a_message_travels_alone() -> None:
    long = Ragged.of([[1], np.ones(1000), [1]], np.int32)
    assert [part.sample_ids for part in Samples(["a", "b", "c"], prompt_ids=long).split(2000)] == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize("name", ["sample_ids", *TEXTS])
def test_a_text_column_with_another_number_of_rows_is_refused_by_name(name: str) -> None:
    message = random_samples(3, seed=1).to_proto()
    getattr(message, name).append("one more")
    with pytest.raises(InvalidRequestError, match=rf"samples\.{name} has 4 rows, but the batch has 3"):
        Samples.from_proto(message)


@pytest.mark.parametrize("name", SCALARS)
def test_a_scalar_column_with_another_number_of_rows_is_refused_by_name(name: str) -> None:
    message = random_samples(3, seed=1).to_proto()
    setattr(message, name, getattr(message, name)[: np.dtype(SCALARS[name]).itemsize])
    with pytest.raises(InvalidRequestError, match=rf"samples\.{name} has 1 rows, but the batch has 3"):
        Samples.from_proto(message)


@pytest.mark.parametrize("name", [name for name, dtype in SCALARS.items() if np.dtype(dtype).itemsize > 1])
def test_a_column_that_ends_within_an_element_is_refused_by_name(name: str) -> None:
    message = random_samples(3, seed=1).to_proto()
    setattr(message, name, getattr(message, name)[:-1])
    with pytest.raises(InvalidRequestError, match=rf"samples\.{name} has \d+ bytes, which is no whole number"):
        Samples.from_proto(message)


@pytest.mark.parametrize("name", [*RAGGED, *PER_TOKEN])
@pytest.mark.parametrize(
    ("lengths", "reason"),
    [
        ([1, 1], "has 2 rows, but the batch has 3"),
        ([9, 9, 9], "announces 27 elements but holds"),
        ([], "announces 0 elements but holds"),
    ],
)
def test_a_ragged_column_whose_lengths_do_not_fit_is_refused_by_name(name: str, lengths: list[int], reason: str) -> None:
    message = Samples(["a", "b", "c"]).to_proto()
    getattr(message, name).values = np.zeros(2, (RAGGED | PER_TOKEN)[name]).tobytes()
    getattr(message, name).lengths = np.array(lengths, "<u4").tobytes()
    with pytest.raises(InvalidRequestError, match=rf"samples\.{name} {reason}"):
        Samples.from_proto(message)


@pytest.mark.parametrize("name", PER_TOKEN)
def test_a_per_token_column_must_have_the_lengths_of_the_responses(name: str) -> None:
    samples = Samples(
        ["a", "b"], response_ids=Ragged.of([[1, 2], [3]], np.int32), **{name: Ragged.of([[1], [1, 1]], PER_TOKEN[name])}
    )
    with pytest.raises(InvalidRequestError, match=rf"samples\.{name} has other lengths than response_ids"):
        Samples.from_proto(samples.to_proto())
