"""What a run keeps in the store at once, against the budgets of `store`: a put that waits for room that never comes would
end the run late."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from baton.config.problems import problem

if TYPE_CHECKING:
    from baton.config.run import RunConfig


def budget_problems(run: RunConfig) -> Iterator[str]:
    """One line for each budget that may not hold what the run has in the store at once."""
    store, runtime = run.store, run.runtime
    episodes, kept = _episodes_at_once(run)
    samples = runtime.sample_per_episode * run.models.policy.n
    fixed = runtime.stream_data_loader_type == "fixed"  # a flow may make fewer of a dynamic one
    if fixed and 0 < store.max_samples < episodes * samples:
        yield problem(
            "store.max_samples",
            store.max_samples,
            f"must hold the {episodes} episodes of {samples} samples that are in the store at once ({kept})",
            f"write {episodes * samples} or more, or 0 for any number",
        )
    shown, spared = _history(run)
    size = store.relay_max_bytes * (shown + spared) // max(shown, 1)  # if all are as large
    if runtime.relay_enabled and 0 < store.max_bytes < size:
        besides = f", and with the episodes that only checkpoints need {size} bytes" if spared else ""
        yield problem(
            "store.max_bytes",
            store.max_bytes,
            f"must hold the history, which may have store.relay_max_bytes ({store.relay_max_bytes}) before it is "
            f"trimmed{besides}",
            "lower store.relay_max_bytes, raise store.max_bytes, or write 0 for any number",
        )


def _episodes_at_once(run: RunConfig) -> tuple[int, str]:
    """How many the store holds when it holds most, and why."""
    shown, spared = _history(run)
    why = ["the one that is rolled out"]
    if shown:
        evicts = run.store.relay_when_full == "evict"
        why.append("the history's newest (earlier ones may go)" if evicts else "those of runtime.max_relay_episode")
    if spared:
        why.append("those that only checkpoints need")
    return 1 + shown + spared, ", ".join(why)


def _history(run: RunConfig) -> tuple[int, int]:
    """How many episodes the history has when it has most: those that were shown last, and what only checkpoints need."""
    return max((_history_before(run, episode) for episode in _fullest(run)), key=sum)


def _fullest(run: RunConfig) -> set[int]:
    """The episodes of which one is rolled out when the store holds most."""
    last = max(run.runtime.num_episode - 1, 0)
    return {last, last // _interval(run) * _interval(run)}


def _interval(run: RunConfig) -> int:
    """Episodes between two checkpoints; all of them, if there is none before the end."""
    return run.runtime.save_episode_interval or max(run.runtime.num_episode, 1)


def _history_before(run: RunConfig, episode: int) -> tuple[int, int]:
    """See `_history`; while this episode is rolled out."""
    runtime, interval = run.runtime, _interval(run)
    if not runtime.relay_enabled:
        return 0, 0
    shown = runtime.relay_limit or runtime.num_episode + 1
    again = shown - 1  # the next episode is one of those that the function is shown then
    if run.store.relay_when_full == "evict":
        shown, again = 1, min(again, 1)
    begun = (episode - 1) // interval * interval  # of a checkpoint that may not be whole yet: the one before it counts too
    newest, *needed = (
        set(range(max(end - count, runtime.relay_episode_offset), end))
        for end, count in ((episode, shown), (begun, again), (begun - interval, again))
    )
    return len(newest), len(set.union(*needed) - newest)
