"""Relay functions that the run file can name; their parameters come from `runtime.relay_sample_params`.

Each gets the history, oldest episode first, the episode to be trained last, and returns the training set. Those that draw
by lot are given `seed`, so that a choice that is repeated is the same.
"""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from math import isfinite
from typing import Any

import numpy as np

from baton.relay.samples import EpisodeRelayBuffer, RelaySample
from baton.samples import RewardStatus

Buffers = Sequence[EpisodeRelayBuffer]


def concat(buffers: Buffers) -> list[RelaySample]:
    """All samples of all episodes, oldest first."""
    return [sample for buffer in buffers for sample in buffer.buffer]


def last(buffers: Buffers) -> list[RelaySample]:
    """The newest episode alone."""
    return buffers[-1].buffer


def uniform(buffers: Buffers, *, k: int, seed: int = 0) -> list[RelaySample]:
    """`k` samples of the whole history, each at most once, all equally likely; all of them if there are fewer."""
    everything = concat(buffers)
    if k >= len(everything):
        return everything
    return _pick(everything, _random(buffers, seed).choice(len(everything), k, replace=False))


def newest_tokens(buffers: Buffers, *, max_tokens: int) -> list[RelaySample]:
    """The newest samples whose prompts and responses have at most `max_tokens` in all, in the order of the history."""
    everything = concat(buffers)
    tokens = np.concatenate([_tokens(buffer) for buffer in buffers])
    newest_first = np.cumsum(tokens[::-1])
    count = int(np.searchsorted(newest_first, max_tokens, side="right"))
    return everything[len(everything) - count :]


def replace_flat(buffers: Buffers) -> list[RelaySample]:
    """The newest episode, with each group whose rewards are all the same replaced by an earlier one whose were not.

    Flat groups teach nothing: their advantages are zero. Earlier groups are taken newest first, each once, of any size;
    flat groups for which none is left stay.
    """
    pool = ((buffer, group) for buffer in reversed(buffers[:-1]) for group in _groups(buffer) if not _is_flat(buffer, group))
    samples = {buffer.episode_id: buffer.buffer for buffer in buffers}
    chosen = []
    for group in _groups(buffers[-1]):
        source, rows = buffers[-1], group
        if _is_flat(source, rows):
            source, rows = next(pool, (source, rows))
        chosen += _pick(samples[source.episode_id], rows)
    return chosen


def age_decayed(buffers: Buffers, *, k: int, half_life: float = 1.0, seed: int = 0) -> list[RelaySample]:
    """`k` samples, each at most once; one is half as likely for every `half_life` policy versions that it is older."""
    everything = concat(buffers)
    versions = np.concatenate([np.asarray(buffer.column("policy_version_max")) for buffer in buffers])
    weights = 0.5 ** ((versions.max() - versions) / half_life)
    return _weighted(everything, weights, k, _random(buffers, seed))


def reward_prioritised(buffers: Buffers, *, k: int, temperature: float = 1.0, seed: int = 0) -> list[RelaySample]:
    """`k` scored samples, each at most once, more likely the larger the advantage that they earned, of either sign.

    A sample's weight is exp(|reward - mean of its group| / `temperature`).
    """
    everything = concat(buffers)
    rewards, means, status = (
        np.concatenate([np.asarray(buffer.column(name)) for buffer in buffers])
        for name in ("rewards", "group_reward_mean", "reward_status")
    )
    surprise = np.where(status == RewardStatus.VALUE, np.abs(rewards - means), -np.inf) / temperature
    weights = np.exp(surprise - surprise.max()) if np.isfinite(surprise).any() else np.zeros(len(everything))
    return _weighted(everything, weights, k, _random(buffers, seed))


BUILTINS: dict[str, Callable[..., list[RelaySample]]] = {
    function.__name__: function
    for function in (concat, last, uniform, newest_tokens, replace_flat, age_decayed, reward_prioritised)
}

OF_WHOLE_GROUPS = "concat", "last", "replace_flat"
"""Those for an algorithm that compares the samples of a group; the others choose samples one by one."""

SEEDED = frozenset(name for name, function in BUILTINS.items() if "seed" in signature(function).parameters)

_COUNT = "a whole number from 0", lambda value: isinstance(value, int) and value >= 0
_ABOVE_0 = "a number above 0", lambda value: isinstance(value, int | float) and isfinite(value) and value > 0
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "k": _COUNT, "max_tokens": _COUNT, "half_life": _ABOVE_0, "temperature": _ABOVE_0,
    "seed": ("a whole number", lambda value: isinstance(value, int)),
}  # fmt: skip


def broken_params(name: str, params: Mapping[str, Any]) -> str:
    """What is wrong with these parameters of the built-in `name`; empty if nothing is."""
    known = dict(list(signature(BUILTINS[name]).parameters.items())[1:])
    for key, value in params.items():
        if key not in known:
            return f"{name} has no {key}; it has {', '.join(known) or 'no parameters'}"
        rule, holds = _RULES[key]
        if isinstance(value, bool) or not holds(value):
            return f"{key} is {value!r}; it must be {rule}"
    lacking = [key for key, parameter in known.items() if parameter.default is parameter.empty and key not in params]
    return f"{name} needs {lacking[0]}, {_RULES[lacking[0]][0]}" if lacking else ""


def _random(buffers: Buffers, seed: int) -> np.random.RandomState:
    entropy = [seed % 2**64, buffers[-1].episode_id]
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(entropy)))  # numpy keeps its numbers for ever


def _pick(samples: Sequence[RelaySample], indices: Sequence[int] | np.ndarray) -> list[RelaySample]:
    return [samples[i] for i in indices]


def _tokens(buffer: EpisodeRelayBuffer) -> np.ndarray:
    return np.asarray(buffer.column("prompt_ids"), np.int64) + np.asarray(buffer.column("response_ids"), np.int64)


def _weighted(
    samples: Sequence[RelaySample], weights: np.ndarray, k: int, random: np.random.RandomState
) -> list[RelaySample]:
    """`k` of those of non-zero weight, without replacement: the largest of log-weight + Gumbel noise."""
    possible = np.flatnonzero(weights > 0)
    keys = np.log(weights[possible]) + random.gumbel(size=len(possible))
    return _pick(samples, possible[np.argsort(-keys, kind="stable")[:k]])


def _groups(buffer: EpisodeRelayBuffer) -> list[np.ndarray]:
    """Positions of each group's samples, groups in the order of their first sample."""
    _, first, which = np.unique(np.asarray(buffer.column("group_ids")), return_index=True, return_inverse=True)
    rows = np.split(np.argsort(which, kind="stable"), np.cumsum(np.bincount(which))[:-1])
    return [rows[group] for group in np.argsort(first)]


def _is_flat(buffer: EpisodeRelayBuffer, group: np.ndarray) -> bool:
    return not float(buffer.column("group_reward_std")[group[0]]) > 0
