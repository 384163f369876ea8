"""A column of arrays of unequal lengths."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np


@dataclass(frozen=True, slots=True)
class Ragged:
    """One variable-length array per sample, concatenated: `values` [sum of lengths], `lengths` [size]."""

    values: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Any], dtype: type) -> Self:
        """Builds a column from one sequence per sample."""
        lengths = np.fromiter((len(row) for row in rows), np.uint32, len(rows))
        values = np.concatenate([np.asarray(row, dtype) for row in rows]) if len(rows) else np.empty(0, dtype)
        return cls(values, lengths)

    @property
    def offsets(self) -> np.ndarray:
        """Start of each row in `values`, and the end of the last: [size + 1]."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths, dtype=np.int64)])

    def rows(self) -> list[np.ndarray]:
        """Views of the rows."""
        offsets = self.offsets
        return [self.values[offsets[i] : offsets[i + 1]] for i in range(len(self.lengths))]

    def take(self, indices: np.ndarray | slice) -> Self:
        """The column of the chosen rows, in that order; a view for a slice."""
        if isinstance(indices, slice):
            lengths, start = self.lengths[indices], int(np.add.reduce(self.lengths[: indices.start], dtype=np.int64))
            return type(self)(self.values[start : start + int(np.add.reduce(lengths, dtype=np.int64))], lengths)
        rows = self.rows()
        chosen = [rows[i] for i in indices]
        return type(self)(np.concatenate(chosen) if chosen else self.values[:0], self.lengths[indices])
