"""Rectangles from columns of arrays, for programs that do not pack samples as the trainer does."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from baton.errors import InvalidRequestError
from baton.samples import COLUMN_NAMES, RAGGED_COLUMNS, Ragged, Samples


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


class Batching:
    """Makes dicts of rectangles out of samples; each key is padded as it was registered, and with zeros on the right if it
    was not."""

    def __init__(self) -> None:
        self._paddings: dict[str, Padding] = {}

    def add_padding_config(
        self, key: str, padding_value: float = 0.0, padding_type: Literal["right", "left"] = "right", multiple: int = 1
    ) -> None:
        """How the column `key` is padded. Raises InvalidRequestError for a key that is no column of arrays, another type,
        or a padding that its elements cannot hold."""
        if key not in RAGGED_COLUMNS:
            raise InvalidRequestError(f"padding of {key!r}: choose from the columns of arrays, {', '.join(RAGGED_COLUMNS)}")
        if padding_type not in ("right", "left"):
            raise InvalidRequestError(f"padding of {key}: padding_type is {padding_type!r}; write right or left")
        if multiple < 1:
            raise InvalidRequestError(f"padding of {key}: multiple is {multiple}; it must be 1 or more")
        if not _holds(RAGGED_COLUMNS[key], padding_value):
            raise InvalidRequestError(f"padding of {key}: {padding_value} is no {RAGGED_COLUMNS[key].name}")
        self._paddings[key] = Padding(padding_value, padding_type, multiple)

    def __call__(self, samples: Samples) -> dict[str, Any]:
        """Every column that is present, by its name: arrays [size, longest], numbers [size], texts as lists."""
        columns = {name: getattr(samples, name) for name in COLUMN_NAMES}
        return {
            name: pad(column, self._paddings.get(name, Padding())) if isinstance(column, Ragged) else column
            for name, column in columns.items()
            if column is not None
        }


def _holds(dtype: np.dtype, value: float) -> bool:
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype)
    return np.isfinite(value) and value == int(value) and limits.min <= value <= limits.max
