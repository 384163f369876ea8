"""What a training set must keep together: the two of a pair, or an online DPO group, whole and in the buffer's order."""

import numpy as np

from baton.errors import InvalidRequestError
from services.buffer.keys import EpisodeKeys
from services.buffer.staging import Incoming
from services.buffer.store import Store
from services.buffer.training_set import MADE


async def check_units(store: Store, keys: EpisodeKeys, chosen: np.ndarray, made: Incoming) -> None:
    """Raises InvalidRequestError if `chosen` (REFERENCE [samples]) divides or turns a unit.

    Stored samples stand where they stand in their episode's unit; made samples may stand for any, if they are of its group.
    A number of samples that is no multiple of the unit is left to the script, which may have another reason to refuse.
    """
    unit = int(await store.call("HGET", keys.episode, "unit") or 1)
    if unit == 1 or len(chosen) % unit:
        return
    units = chosen.reshape(-1, unit)
    stored = units["episode"] != MADE
    begins = units["position"] - np.arange(unit)
    first = np.argmax(stored, axis=1)[:, None]  # the first stored one; any if all are made
    same = (units["episode"] == np.take_along_axis(units["episode"], first, 1)) & (
        begins == np.take_along_axis(begins, first, 1)
    )
    whole = (~stored | (same & (begins % unit == 0))).all(axis=1)
    if not whole.all():
        raise _divided(keys, units, int(np.argmin(whole)), "")
    if made.count:
        await _check_groups(store, keys, units, stored, made)


async def _check_groups(store: Store, keys: EpisodeKeys, units: np.ndarray, stored: np.ndarray, made: Incoming) -> None:
    """Checks the units that have made samples; those without a group id are the user's own to put together."""
    names = [name for chunk in made.chunks for name in chunk.samples.group_ids or ()]
    if not names:
        return
    mixed = np.flatnonzero(stored.any(axis=1) & ~stored.all(axis=1))
    firsts = units[mixed, np.argmax(stored[mixed], axis=1)]
    questions = [
        ("ZREVRANGEBYSCORE", EpisodeKeys(keys.run_id, int(episode)).groups, int(position), "-inf", "LIMIT", 0, 1)
        for episode, position in firsts
    ]
    answers = await store.pipeline(questions) if questions else []
    groups_of_stored = {int(at): {name.decode() for name in answer} for at, answer in zip(mixed, answers, strict=True)}
    for at in map(int, np.flatnonzero(~stored.all(axis=1))):
        found = {names[place] for place in units[at]["position"][~stored[at]]} | groups_of_stored.get(at, set())
        if len(found) > 1:
            raise _divided(keys, units, at, f", of the groups {' and '.join(sorted(found))}")


def _divided(keys: EpisodeKeys, units: np.ndarray, at: int, groups: str) -> InvalidRequestError:
    unit = units.shape[1]
    places = ", ".join(
        f"(made, {position})" if episode == MADE else f"(episode {episode}, position {position})"
        for episode, position in units[at].tolist()
    )
    return InvalidRequestError(
        f"samples {at * unit} to {at * unit + unit - 1} of the training set are {places}{groups}, but {keys} keeps every "
        f"{unit} together; have the relay function return whole pairs, or groups, each in the order of its buffer"
    )
