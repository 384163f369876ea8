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
    earlier = max((_earlier(run, episode) for episode in _fullest(run)), key=lambda kinds: len(set.union(*kinds)))
    episodes = 1 + len(set.union(*earlier))
    samples = runtime.sample_per_episode * run.models.policy.n
    fixed = runtime.stream_data_loader_type == "fixed"  # a flow may make fewer of a dynamic one
    if fixed and 0 < store.max_samples < episodes * samples:
        yield problem(
            "store.max_samples",
            store.max_samples,
            f"must hold the {episodes} episodes of {samples} samples that are in the store at once ({_why(run, *earlier)})",
            f"write {episodes * samples} or more, or 0 for any number",
        )
    shown, needed, _ = earlier
    size = store.relay_max_bytes * len(shown | needed) // max(len(shown), 1)  # if all are as large
    if shown and 0 < store.max_bytes < size:
        besides = f", and with the episodes that only checkpoints need {size} bytes" if needed - shown else ""
        yield problem(
            "store.max_bytes",
            store.max_bytes,
            f"must hold the history, which may have store.relay_max_bytes ({store.relay_max_bytes}) before it is "
            f"trimmed{besides}",
            "lower store.relay_max_bytes, raise store.max_bytes, or write 0 for any number",
        )


def _why(run: RunConfig, shown: set[int], needed: set[int], waiting: set[int]) -> str:
    """What all the episodes are in the store for."""
    why = ["the one that is rolled out"]
    if shown:
        evicts = run.store.relay_when_full == "evict"
        why.append("the history's newest (earlier ones may go)" if evicts else "those of runtime.max_relay_episode")
    if needed - shown:
        why.append("those that only checkpoints need")
    if waiting - shown:
        why.append("those that wait for a checkpoint, as store.ack_on says")
    return ", ".join(why)


def _fullest(run: RunConfig) -> set[int]:
    """The episodes of which one is rolled out when the store holds most."""
    last = max(run.runtime.num_episode - 1, 0)
    return {last, last // _interval(run) * _interval(run)}


def _interval(run: RunConfig) -> int:
    """Episodes between two checkpoints; all of them, if there is none before the end."""
    return run.runtime.save_episode_interval or max(run.runtime.num_episode, 1)


def _earlier(run: RunConfig, episode: int) -> tuple[set[int], set[int], set[int]]:
    """The episodes that are in the store while this one is rolled out: those that the relay function was shown last, those
    that it would be shown again after a resumption, and those that wait for a checkpoint."""
    runtime, interval = run.runtime, _interval(run)
    begun = max(episode - 1, 0) // interval * interval  # its checkpoint may not be whole yet: the one before it counts too
    waiting = set(range(begun, episode)) if run.store.ack_on == "checkpoint" else set()
    if not runtime.relay_enabled:
        return set(), set(), waiting
    count = runtime.relay_limit or runtime.num_episode + 1
    again = count - 1  # the next episode is one of those that it is shown then
    if run.store.relay_when_full == "evict":
        count, again = 1, min(again, 1)
    shown, *needed = (
        set(range(max(end - some, runtime.relay_episode_offset), end))
        for end, some in ((episode, count), (begun, again), (begun - interval, again))
    )
    return shown, set.union(*needed), waiting
