"""Rectangles from columns of arrays, for programs that do not pack samples as the trainer does."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from baton.samples import Ragged


@dataclass(frozen=True, slots=True)
class Padding:
    """How the rows of one column are filled up."""

    value: float = 0.0
    side: Literal["right", "left"] = "right"
    multiple: int = 1
    """The width is rounded up to a multiple of this."""


def pad(column: Ragged, padding: Padding = Padding(), *, width: int | None = None) -> np.ndarray:
    """[size, width] of the column's type; `width` is that of the longest row unless it is given.

    Raises ValueError for a row that is longer than `width`.
    """
    lengths = column.lengths.astype(np.int64)
    longest = int(lengths.max(initial=0))
    if width is None:
        width = -(-longest // padding.multiple) * padding.multiple
    elif longest > width:
        raise ValueError(f"a row has {longest} elements, more than the width of {width}")
    rows = np.full((len(lengths), width), padding.value, column.values.dtype)
    places = np.arange(width)
    filled = places < lengths[:, None] if padding.side == "right" else places >= width - lengths[:, None]
    rows[filled] = column.values
    return rows
