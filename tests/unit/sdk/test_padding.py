"""Padding of columns of arrays."""

import numpy as np
import pytest

from baton.padding import Padding, pad
from baton.samples import Ragged

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
