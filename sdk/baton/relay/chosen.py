"""From what a relay function returned to a training set: references where it can be, new samples where it must."""

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from baton.errors import InvalidRequestError
from baton.relay.samples import FIELDS, LENGTHS, EpisodeRelayBuffer, RelaySample
from baton.samples import COLUMN_TYPES, PER_TOKEN, RAGGED_COLUMNS, Ragged, Samples

NEEDED = ("prompt_ids", "response_ids", "rollout_logprobs", "policy_version_max")
"""Keys that a sample of the user's own must have."""
MADE = -1
LEAST = {"prompt_ids": 0, "response_ids": 0, "span_tokens": 0}
"""Of columns whose type allows less than makes sense."""


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """What a relay function chose, in its order."""

    references: np.ndarray
    """int64 [samples, 2]: (episode, position in it), or (-1, place in `made`)."""
    made: Samples | None
    policy_versions: np.ndarray
    """The newest weights that sampled each sample: int64 [samples]."""


def training_set(returned: Any, buffers: Sequence[EpisodeRelayBuffer], episode_id: int) -> TrainingSet:
    """Raises InvalidRequestError if it is no list, or holds what is not a sample of these buffers or a whole new one."""
    if not isinstance(returned, list):
        raise InvalidRequestError(
            f"the relay function returned a {type(returned).__name__}; it must return a list of samples (dicts)"
        )
    known = {buffer.episode_id: buffer for buffer in buffers}
    references, made = np.empty((len(returned), 2), np.int64), []
    for at, sample in enumerate(returned):
        if isinstance(sample, RelaySample) and not sample.is_changed:
            if sample.episode_id not in known:
                raise InvalidRequestError(
                    f"item {at} of what the relay function returned is a sample of episode {sample.episode_id}, which is "
                    "not in the history any more; choose from the buffers that it is given"
                )
            references[at] = sample.episode_id, sample.position
        elif isinstance(sample, Mapping):
            references[at] = MADE, len(made)
            made.append(_checked(sample, at))
        else:
            raise InvalidRequestError(
                f"item {at} of what the relay function returned is a {type(sample).__name__}; return samples (dicts)"
            )
    samples = _made(made, episode_id) if made else None
    versions = np.empty(len(returned), np.int64)
    for stored_in in np.unique(references[:, 0]):
        which = references[:, 0] == stored_in
        column = samples.policy_version_max if stored_in == MADE else known[int(stored_in)].column("policy_version_max")
        versions[which] = np.asarray(column)[references[which, 1]]
    return TrainingSet(references, samples, versions)


def _checked(sample: Mapping[str, Any], at: int) -> dict[str, Any]:
    fields = {key: value for key, value in dict(sample).items() if key not in LENGTHS and value is not None}
    where = f"item {at} of what the relay function returned"
    if unknown := sorted(set(fields) - set(FIELDS)):
        raise InvalidRequestError(f"{where} has the key {unknown[0]!r}; a sample has {', '.join(FIELDS)}")
    if lacking := [key for key in NEEDED if key not in fields]:
        raise InvalidRequestError(f"{where} is no sample that is stored, and lacks {', '.join(lacking)}")
    for key in fields:
        try:
            fields[key] = _value(FIELDS[key], fields[key])
        except ValueError as error:
            raise InvalidRequestError(f"{where} has the {key} {reprlib.repr(fields[key])}; {error}") from error
    for key in PER_TOKEN:
        if key in fields and len(fields[key]) != len(fields["response_ids"]):
            raise InvalidRequestError(
                f"{where} has {len(fields[key])} {key}, but {len(fields['response_ids'])} response_ids; one for each token"
            )
    if "span_tokens" in fields and sum(fields["span_tokens"]) != len(fields["response_ids"]):
        raise InvalidRequestError(
            f"{where} has span_tokens of {sum(fields['span_tokens'])} tokens in all, but {len(fields['response_ids'])} "
            "response_ids; change span_tokens with them"
        )
    return fields


def _made(made: list[dict[str, Any]], episode_id: int) -> Samples:
    """New samples as columns, with ids of their own."""
    ids = [f"{fields.get('sample_id', 'made')}~e{episode_id}.{at}" for at, fields in enumerate(made)]
    columns: dict[str, Any] = {}
    for key, column in FIELDS.items():
        rows = [fields.get(key) for fields in made]
        if key == "sample_id" or all(row is None for row in rows):
            continue
        if any(row is None for row in rows):
            at = next(i for i, row in enumerate(rows) if row is None)
            raise InvalidRequestError(
                f"sample {ids[at]} that the relay function made has no {key}, but others that it made have; "
                "set a key in all of them or in none"
            )
        columns[column] = _column(column, rows)
    return Samples(sample_ids=ids, **columns)


def _value(column: str, value: Any) -> Any:
    """One sample's value as the column stores it. Raises ValueError, which says what it must be."""
    if column == "metadata":
        try:
            return value if isinstance(value, str) else json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"it must be JSON: {error}") from error
    if column in RAGGED_COLUMNS:
        return _numbers(column, value, np.dtype(RAGGED_COLUMNS[column]), 1)
    return _numbers(column, value, np.dtype(COLUMN_TYPES[column]), 0) if column in COLUMN_TYPES else str(value)


def _numbers(column: str, value: Any, dtype: np.dtype, dimensions: int) -> np.ndarray:
    if dtype.kind == "f":
        kind = "finite numbers" if dimensions else "a number"  # what has no reward has nan there
    else:
        least, most = LEAST.get(column, np.iinfo(dtype).min), np.iinfo(dtype).max
        kind = f"{'whole numbers' if dimensions else 'a whole number'} from {least} to {most}"
    rule = f"it must be {'a list of ' if dimensions else ''}{kind}"
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{rule}: {error}") from error
    if array.ndim != dimensions or array.dtype.kind not in "biuf":
        raise ValueError(rule)
    with np.errstate(over="ignore"):
        if dtype.kind == "f":
            fits = np.isfinite(array.astype(dtype)) | (dimensions == 0)
        else:
            fits = (array >= least) & (array <= most) & (array == np.trunc(array))
        if not fits.all():
            raise ValueError(f"{rule}, and has {array[~fits][0]} at place {int(np.argmin(fits))}" if dimensions else rule)
        return array.astype(dtype)


def _column(column: str, rows: list[Any]) -> Any:
    if column in RAGGED_COLUMNS:
        return Ragged.of(rows, RAGGED_COLUMNS[column])
    return np.asarray(rows, COLUMN_TYPES[column]) if column in COLUMN_TYPES else rows
