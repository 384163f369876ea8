"""Budgets of the store that a run cannot keep to are refused before it starts."""

import pytest

from baton.config import ConfigError

GROUPED = {"num_inference_per_prompt": 8, "sample_per_episode": 64}

REFUSED = {
    "an episode beyond the samples of the store": (
        {"runtime": {**GROUPED, "sample_per_episode": 64}, "store": {"max_samples": 63}},
        "store.max_samples: got 63; must hold the 1 episodes of 64 samples",
    ),
    "a history beyond the samples of the store": (
        {
            "runtime": {
                **GROUPED, "sample_per_episode": 64, "num_episode": 9, "max_relay_episode": 3, "relay_sample_fn": "last"
            },
            "store": {"max_samples": 255},
        },
        "store.max_samples: got 255; must hold the 4 episodes of 64 samples",
    ),
    "a history without a limit beyond the samples of the store": (
        {
            "runtime": {
                **GROUPED, "sample_per_episode": 64, "num_episode": 9, "max_relay_episode": -1, "relay_sample_fn": "last",
                "relay_episode_offset": 4,
            },
            "store": {"max_samples": 319},
        },
        "store.max_samples: got 319; must hold the 5 episodes of 64 samples",
    ),
    "a history beyond the bytes of the store": (
        {
            "runtime": {**GROUPED, "max_relay_episode": 1, "relay_sample_fn": "last"},
            "store": {"max_bytes": 1000, "relay_max_bytes": 1001},
        },
        "store.max_bytes: got 1000; must hold the history, which may have store.relay_max_bytes (1001)",
    ),
    "what two checkpoints need of a history beyond the samples of the store": (
        {
            "runtime": {
                **GROUPED, "num_episode": 20, "max_relay_episode": 3, "relay_sample_fn": "last", "save_episode_interval": 4
            },
            "store": {"max_samples": 511},
        },
        "store.max_samples: got 511; must hold the 8 episodes of 64 samples",
    ),
    "what two checkpoints need, most of which is shown too": (
        {
            "runtime": {
                **GROUPED, "num_episode": 20, "max_relay_episode": 3, "relay_sample_fn": "last", "save_episode_interval": 1
            },
            "store": {"max_samples": 319},
        },
        "store.max_samples: got 319; must hold the 5 episodes of 64 samples",
    ),
    "what two checkpoints need of a history that is evicted otherwise": (
        {
            "runtime": {
                **GROUPED, "num_episode": 20, "max_relay_episode": -1, "relay_sample_fn": "last", "save_episode_interval": 4
            },
            "store": {"max_samples": 255, "relay_when_full": "evict"},
        },
        "store.max_samples: got 255; must hold the 4 episodes of 64 samples",
    ),
    "what two checkpoints need of a history beyond the bytes of the store": (
        {
            "runtime": {
                **GROUPED, "num_episode": 20, "max_relay_episode": -1, "relay_sample_fn": "last", "save_episode_interval": 4
            },
            "store": {"max_bytes": 2999, "relay_max_bytes": 1000, "relay_when_full": "evict"},
        },
        "store.max_bytes: got 2999; must hold the history, which may have store.relay_max_bytes (1000) before it is trimmed"
        ", and with the episodes that only checkpoints need 3000 bytes",
    ),
    "episodes that wait for a checkpoint, and the next one, beyond the samples of the store": (
        {
            "runtime": {**GROUPED, "num_episode": 20, "save_episode_interval": 5},
            "store": {"max_samples": 383, "ack_on": "checkpoint"},
        },
        "store.max_samples: got 383; must hold the 6 episodes of 64 samples that are in the store at once (the one that is "
        "rolled out, those that wait for a checkpoint, as store.ack_on says)",
    ),
    "episodes that wait for the checkpoint at the end": (
        {"runtime": {**GROUPED, "num_episode": 20}, "store": {"max_samples": 1279, "ack_on": "checkpoint"}},
        "store.max_samples: got 1279; must hold the 20 episodes of 64 samples",
    ),
    "episodes that wait for a checkpoint, and the history of two": (
        {
            "runtime": {
                **GROUPED, "num_episode": 20, "max_relay_episode": 3, "relay_sample_fn": "last", "save_episode_interval": 4
            },
            "store": {"max_samples": 575, "ack_on": "checkpoint"},
        },
        "store.max_samples: got 575; must hold the 9 episodes of 64 samples",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_budget_that_the_run_exceeds_is_refused_with_the_numbers(run_of, case):
    sections, line = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        run_of(**sections).require_startable()
    assert line in str(caught.value)


@pytest.mark.parametrize("samples", [128, 0])
def test_a_budget_for_what_is_kept_when_old_episodes_may_go_is_enough(run_of, samples):
    runtime = {**GROUPED, "sample_per_episode": 64, "num_episode": 9, "max_relay_episode": -1, "relay_sample_fn": "last"}
    run_of(runtime=runtime, store={"max_samples": samples, "relay_when_full": "evict"}).require_startable()


@pytest.mark.parametrize(
    ("runtime", "store"),
    [
        ({"max_relay_episode": 3, "save_episode_interval": 4}, {"max_samples": 512}),
        ({"max_relay_episode": 1, "save_episode_interval": 4}, {"max_samples": 128, "max_bytes": 2**30}),
        ({"max_relay_episode": -1, "save_episode_interval": 4}, {"max_samples": 20 * 64, "max_bytes": 2**30}),
        ({"max_relay_episode": 3, "save_episode_interval": 0}, {"max_samples": 256, "max_bytes": 2**30}),
        ({"max_relay_episode": 3, "save_episode_interval": 19}, {"max_samples": 256, "max_bytes": 2**30}),
        ({"max_relay_episode": 3, "save_episode_interval": 4}, {"max_samples": 576, "ack_on": "checkpoint"}),
    ],
)  # fmt: skip
def test_a_budget_for_what_checkpoints_need_besides_what_is_shown_is_enough(run_of, runtime, store):
    runtime = {**GROUPED, "num_episode": 20, "relay_sample_fn": "last"} | runtime
    run_of(runtime=runtime, store=store).require_startable()


@pytest.mark.parametrize(("interval", "samples"), [(5, 384), (1, 128), (19, 1280), (30, 1280), (0, 1280)])
def test_a_budget_for_what_waits_for_a_checkpoint_and_the_next_episode_is_enough(run_of, interval, samples):
    runtime = {**GROUPED, "num_episode": 20, "save_episode_interval": interval}
    run_of(runtime=runtime, store={"max_samples": samples, "ack_on": "checkpoint"}).require_startable()
