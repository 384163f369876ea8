"""Samples as columns of numpy arrays: what a flow makes, the buffer keeps and the trainer learns from.

The wire form is `baton.api.common.v1.SampleBatch`; `to_proto` and `from_proto` are the only places that know both.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import Any, Self

import numpy as np

from baton.api.common.v1 import samples_pb2 as pb
from baton.errors import InvalidRequestError
from baton.ragged import Ragged

MESSAGE_BYTES = 3 * 1024 * 1024
"""Size of one message of samples, below gRPC's default limit of 4 MiB: what carries it adds fields of its own."""

GROUP_BYTES = 2**28
"""The most that one group may have. A replica answers with a group in one message, which clients take up to this size."""

Buffer = bytes | memoryview
_FRAMING_BYTES = 512  # tags and lengths of all columns
_TEXT_FRAMING_BYTES = 7  # tag and length of one string
PER_TOKEN = (
    "rollout_logprobs", "model_logprobs", "uncut_logprobs", "reference_logprobs", "values", "token_rewards", "loss_mask",
)  # fmt: skip
"""Columns with one element for each response token."""


class FinishReason(IntEnum):
    """Why a response ended."""

    STOP = pb.FINISH_REASON_STOP
    """End token or stop string."""
    LENGTH = pb.FINISH_REASON_LENGTH
    """Token limit."""
    ABORT = pb.FINISH_REASON_ABORT
    """Cut off from outside."""


class RewardStatus(IntEnum):
    """Whether a reward may enter an advantage."""

    UNSPECIFIED = pb.REWARD_STATUS_UNSPECIFIED
    """Not scored."""
    VALUE = pb.REWARD_STATUS_VALUE
    """Scored: the only one that trains."""
    ABSTAIN = pb.REWARD_STATUS_ABSTAIN
    """The function declined."""
    ERROR = pb.REWARD_STATUS_ERROR
    """The function raised or returned no finite number."""
    TIMEOUT = pb.REWARD_STATUS_TIMEOUT
    """The function ran over its time limit."""


def _as_slice(indices: np.ndarray) -> np.ndarray | slice:
    """The slice that consecutive indices are, else the indices."""
    if len(indices) == 0 or indices[0] < 0 or (np.diff(indices) != 1).any():
        return indices
    return slice(int(indices[0]), int(indices[-1]) + 1)


def _ragged(dtype: type) -> Any:
    return field(default=None, metadata={"kind": "ragged", "dtype": np.dtype(dtype)})


def _scalar(dtype: type) -> Any:
    return field(default=None, metadata={"kind": "scalar", "dtype": np.dtype(dtype)})


def _text() -> Any:
    return field(default=None, metadata={"kind": "text"})


@dataclass(frozen=True, slots=True)
class Samples:
    """Many samples; every column has one row per sample, or is None (absent). Columns are described in samples.proto."""

    sample_ids: list[str]
    group_ids: list[str] | None = _text()
    episode_ids: np.ndarray | None = _scalar(np.int64)
    prompt_ids: Ragged | None = _ragged(np.int32)
    response_ids: Ragged | None = _ragged(np.int32)
    rollout_logprobs: Ragged | None = _ragged(np.float32)
    model_logprobs: Ragged | None = _ragged(np.float32)
    uncut_logprobs: Ragged | None = _ragged(np.float32)
    reference_logprobs: Ragged | None = _ragged(np.float32)
    values: Ragged | None = _ragged(np.float32)
    token_rewards: Ragged | None = _ragged(np.float32)
    loss_mask: Ragged | None = _ragged(np.uint8)
    rewards: np.ndarray | None = _scalar(np.float32)
    reward_status: np.ndarray | None = _scalar(np.uint8)
    group_reward_mean: np.ndarray | None = _scalar(np.float32)
    group_reward_std: np.ndarray | None = _scalar(np.float32)
    group_sizes: np.ndarray | None = _scalar(np.int32)
    finish_reasons: np.ndarray | None = _scalar(np.uint8)
    policy_version_min: np.ndarray | None = _scalar(np.int64)
    policy_version_max: np.ndarray | None = _scalar(np.int64)
    weights_digests: list[str] | None = _text()
    temperatures: np.ndarray | None = _scalar(np.float32)
    metadata: list[str] | None = _text()
    span_versions: Ragged | None = _ragged(np.int64)
    span_tokens: Ragged | None = _ragged(np.int32)

    def __len__(self) -> int:
        return len(self.sample_ids)

    def columns(self) -> list[str]:
        """Names of the columns that are present, but for `sample_ids`."""
        return [name for name, _, _ in _COLUMNS if getattr(self, name) is not None]

    def take(self, indices: Sequence[int] | np.ndarray | slice) -> Self:
        """The chosen samples, in that order; repeats are allowed. A slice has a start and a stop within the batch."""
        index = indices if isinstance(indices, slice) else _as_slice(np.asarray(indices, dtype=np.int64))
        columns: dict[str, Any] = {"sample_ids": _rows(self.sample_ids, index)}
        for name, kind, _ in _COLUMNS:
            column = getattr(self, name)
            if column is None:
                continue
            if kind == "ragged":
                columns[name] = column.take(index)
            else:
                columns[name] = _rows(column, index) if kind == "text" else column[index]
        return type(self)(**columns)

    def uncut(self) -> Ragged | None:
        """Each token's log-probability under the whole distribution at its sample's temperature, from the column that has
        it (see samples.proto); None if none does."""
        others = self.rollout_logprobs, self.model_logprobs, self.temperatures
        if self.uncut_logprobs is not None or any(column is None for column in others):
            return self.uncut_logprobs
        is_raw = np.repeat((self.temperatures == 1) | (self.temperatures == 0), self.model_logprobs.lengths.astype(np.int64))
        values = np.where(is_raw, self.model_logprobs.values, self.rollout_logprobs.values)
        return Ragged(values, self.model_logprobs.lengths)

    @classmethod
    def alike(cls, parts: Sequence[Self]) -> Sequence[Self]:
        """The same parts, with `uncut_logprobs` in all of them if it is in one."""
        present = [part.uncut_logprobs is not None for part in parts]
        return [replace(part, uncut_logprobs=part.uncut()) for part in parts] if len({*present}) > 1 else parts

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        """All samples of all parts. A column that any part lacks, and that does not follow from others, is an error unless
        all lack it."""
        parts = cls.alike(parts)
        columns: dict[str, Any] = {"sample_ids": [i for part in parts for i in part.sample_ids]}
        for name, kind, _ in _COLUMNS:
            if not (present := _present(name, parts)):
                continue
            if kind == "ragged":
                values, lengths = ([getattr(r, part) for r in present] for part in ("values", "lengths"))
                columns[name] = Ragged(np.concatenate(values), np.concatenate(lengths))
            elif kind == "text":
                columns[name] = [row for value in present for row in value]
            else:
                columns[name] = np.concatenate(present)
        return cls(**columns)

    def token_counts(self) -> np.ndarray:
        """Prompt + response tokens of each sample: [size]."""
        return self.prompt_ids.lengths.astype(np.int64) + self.response_ids.lengths

    def split(self, message_bytes: int = MESSAGE_BYTES) -> Iterator[Self]:
        """Yields consecutive parts whose messages take at most `message_bytes`; a single larger sample travels alone."""
        ends, room = np.cumsum(self.wire_bytes()), message_bytes - _FRAMING_BYTES
        start, before = 0, 0
        while start < len(self):
            end = max(int(np.searchsorted(ends, before + room, side="right")), start + 1)
            yield self if end - start == len(self) else self.take(np.arange(start, end))
            start, before = end, ends[end - 1]

    def wire_bytes(self) -> np.ndarray:
        """Bytes that each sample takes in a message, at most: [size]."""
        texts = [self.sample_ids, *(getattr(self, name) for name, kind, _ in _COLUMNS if kind == "text")]
        sizes = np.zeros(len(self), np.int64)
        for column in filter(None, texts):
            lengths = map(len, column) if "".join(column).isascii() else (len(text.encode()) for text in column)
            sizes += np.fromiter(lengths, np.int64, len(self)) + _TEXT_FRAMING_BYTES
        for name, kind, dtype in _COLUMNS:
            column = getattr(self, name)
            if kind == "ragged" and column is not None:
                sizes += column.lengths.astype(np.int64) * dtype.itemsize + 4  # its length is an uint32
            elif kind == "scalar" and column is not None:
                sizes += dtype.itemsize
        return sizes

    def to_proto(self) -> pb.SampleBatch:
        """The wire form; the caller splits first: see `split`."""
        message = self.light_proto([self])
        for name, dtype in RAGGED_COLUMNS.items():
            if (column := getattr(self, name)) is not None:
                getattr(message, name).values = np.ascontiguousarray(column.values, dtype).tobytes()
        return message

    @classmethod
    def light_proto(cls, parts: Sequence[Self]) -> pb.SampleBatch:
        """The wire form of all samples of all parts; of arrays it has the lengths alone. Raises ValueError as `concat`."""
        message = pb.SampleBatch(size=sum(map(len, parts)))
        for part in parts:
            message.sample_ids.extend(part.sample_ids)
        for name, kind, dtype in _COLUMNS:
            if not (present := _present(name, parts)):
                continue
            if kind == "ragged":
                getattr(message, name).lengths = b"".join([column.lengths.astype("<u4").tobytes() for column in present])
            elif kind == "text":
                for column in present:
                    getattr(message, name).extend(column)
            else:
                setattr(message, name, b"".join([column.astype(dtype, copy=False).tobytes() for column in present]))
        return message

    @classmethod
    def from_proto(cls, message: pb.SampleBatch, values: Mapping[str, Buffer] | None = None) -> Self:
        """Reads the wire form without copying the arrays. `values`: elements of arrays that the message itself lacks.

        Raises InvalidRequestError, naming the column, if a column has another number of rows or of tokens than the batch.
        """
        columns: dict[str, Any] = {"sample_ids": list(message.sample_ids)}
        _check_rows("sample_ids", len(message.sample_ids), message.size)
        for name, kind, dtype in _COLUMNS:
            raw = getattr(message, name)
            if kind == "ragged":
                elements = values[name] if values and name in values else raw.values
                if not (len(raw.lengths) or len(elements)):
                    continue
                column = Ragged(_read(name, elements, dtype), _read(f"{name}.lengths", raw.lengths, np.dtype("<u4")))
                rows, total = len(column.lengths), int(np.add.reduce(column.lengths, dtype=np.int64))
                if total != len(column.values):
                    raise InvalidRequestError(f"samples.{name} announces {total} elements but holds {len(column.values)}")
            else:
                if not raw:
                    continue
                column = list(raw) if kind == "text" else _read(name, raw, dtype)
                rows = len(column)
            _check_rows(name, rows, message.size)
            columns[name] = column
        samples = cls(**columns)
        for name in PER_TOKEN:
            column, tokens = getattr(samples, name), samples.response_ids
            if None not in (column, tokens) and not np.array_equal(column.lengths, tokens.lengths):
                raise InvalidRequestError(f"samples.{name} has other lengths than response_ids; it has one element a token")
        spans = samples.span_versions, samples.span_tokens
        if None not in spans and not np.array_equal(*(column.lengths for column in spans)):
            raise InvalidRequestError("samples.span_tokens has other lengths than span_versions; it has one a segment")
        return samples


def fits(wire_bytes: int) -> bool:
    """Whether one message holds samples of so many bytes."""
    return wire_bytes <= MESSAGE_BYTES - _FRAMING_BYTES


def _present(name: str, parts: Sequence[Samples]) -> list[Any]:
    """The column of each part; none if no part has it. Raises ValueError if some have it."""
    found = [column for part in parts if (column := getattr(part, name)) is not None]
    if len(found) not in (0, len(parts)):
        raise ValueError(f"samples.{name} is present in some parts only; make it in all of them or in none")
    return found


def _rows(column: list[str], index: np.ndarray | slice) -> list[str]:
    return column[index] if isinstance(index, slice) else [column[i] for i in index]


def _read(name: str, raw: Buffer, dtype: np.dtype) -> np.ndarray:
    if len(raw) % dtype.itemsize:
        raise InvalidRequestError(f"samples.{name} has {len(raw)} bytes, which is no whole number of {dtype.name} elements")
    return np.frombuffer(raw, dtype)


def _check_rows(name: str, rows: int, size: int) -> None:
    if rows != size:
        raise InvalidRequestError(f"samples.{name} has {rows} rows, but the batch has {size}")


_COLUMNS = [
    (f.name, f.metadata["kind"], f.metadata["dtype"].newbyteorder("<") if "dtype" in f.metadata else None)
    for f in fields(Samples)
    if f.metadata
]

COLUMN_NAMES = ("sample_ids", *(name for name, _, _ in _COLUMNS))
"""All columns."""
RAGGED_COLUMNS: Mapping[str, np.dtype] = {name: dtype for name, kind, dtype in _COLUMNS if kind == "ragged"}
"""Columns of arrays, and the type of their elements."""
COLUMN_TYPES: Mapping[str, np.dtype] = {name: dtype for name, kind, dtype in _COLUMNS if kind == "scalar"}
"""Columns of one number per sample, and its type."""
