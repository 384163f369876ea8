"""Padding of columns of arrays."""

import numpy as np
import pytest

from baton.errors import InvalidRequestError
from baton.padding import Batching, Padding, pad
from baton.samples import Ragged, Samples

COLUMN = Ragged.of([[1, 2, 3], [], [4]], np.int32)


@pytest.mark.parametrize(
    ("padding", "width", "expected"),
    [
        (Padding(), None, [[1, 2, 3], [0, 0, 0], [4, 0, 0]]),
        (Padding(-1, "left"), None, [[1, 2, 3], [-1, -1, -1], [-1, -1, 4]]),
        (Padding(7, multiple=4), None, [[1, 2, 3, 7], [7, 7, 7, 7], [4, 7, 7, 7]]),
        (Padding(side="left"), 4, [[0, 1, 2, 3], [0, 0, 0, 0], [0, 0, 0, 4]]),
    ],
)
def test_rows_are_filled_by_value_and_side_up_to_the_width(padding, width, expected):
    rows = pad(COLUMN, padding, width=width)
    assert rows.tolist() == expected
    assert rows.dtype == np.int32


def test_a_row_beyond_the_width_is_refused():
    with pytest.raises(ValueError, match="3 elements, more than the width of 2"):
        pad(COLUMN, width=2)


def test_no_rows_are_no_rows():
    assert pad(Ragged.of([], np.float32)).shape == (0, 0)


def test_each_key_is_padded_as_it_was_registered():
    samples = Samples(
        ["a", "b"],
        prompt_ids=Ragged.of([[1], [2, 3]], np.int32),
        response_ids=Ragged.of([[4, 5, 6], [7]], np.int32),
        rollout_logprobs=Ragged.of([[-1, -2, -3], [-4]], np.float32),
        rewards=np.float32([1, 2]),
    )
    batch = Batching()
    batch.add_padding_config("prompt_ids", 9, "left")
    batch.add_padding_config("response_ids", padding_value=8, multiple=4)
    found = batch(samples)
    assert found["prompt_ids"].tolist() == [[9, 1], [2, 3]]
    assert found["response_ids"].tolist() == [[4, 5, 6, 8], [7, 8, 8, 8]]
    assert found["rollout_logprobs"].tolist() == [[-1, -2, -3], [-4, 0, 0]], "not registered: zeros on the right"
    assert (found["sample_ids"], found["rewards"].tolist()) == (["a", "b"], [1, 2])
    assert set(found) == {"sample_ids", "rewards", "prompt_ids", "response_ids", "rollout_logprobs"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rewards",), "padding of 'rewards': choose from the columns of arrays, prompt_ids"),
        (("prompt_ids", 0, "middle"), "padding_type is 'middle'; write right or left"),
        (("prompt_ids", 0.5), "0.5 is no int32"),
        (("loss_mask", -1), "-1 is no uint8"),
        (("loss_mask", float("nan")), "nan is no uint8"),
        (("prompt_ids", float("inf")), "inf is no int32"),
        (("prompt_ids", 0, "left", 0), "multiple is 0"),
    ],
)
def test_a_padding_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(InvalidRequestError, match=message):
        Batching().add_padding_config(*arguments)
