"""What a run keeps in the store at once, against the budgets of `store`: a put that waits for room that never comes would
end the run late."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from baton.config.problems import problem

if TYPE_CHECKING:
    from baton.config.run import RunConfig


def budget_problems(run: RunConfig) -> Iterator[str]:
    """One line for each budget that the run is sure to exceed, or that its history may fill alone."""
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
    if runtime.relay_enabled and 0 < store.max_bytes < store.relay_max_bytes:
        yield problem(
            "store.max_bytes",
            store.max_bytes,
            f"must hold the history, which may have store.relay_max_bytes ({store.relay_max_bytes}) before it is trimmed",
            "lower store.relay_max_bytes, raise store.max_bytes, or write 0 for any number",
        )


def _episodes_at_once(run: RunConfig) -> tuple[int, str]:
    """How many the store holds when it holds most, and why."""
    runtime = run.runtime
    relayed = max(runtime.num_episode - runtime.relay_episode_offset, 0) if runtime.relay_enabled else 0
    if not relayed:
        return 1, "the one that is rolled out"
    if run.store.relay_when_full == "evict":
        return min(2, relayed), "the history's newest, and the one that is rolled out; earlier ones may be evicted"
    if runtime.relay_limit is None:
        return relayed, "runtime.max_relay_episode keeps all"
    return min(runtime.relay_limit + 1, relayed), "runtime.max_relay_episode, and the one that is rolled out"
