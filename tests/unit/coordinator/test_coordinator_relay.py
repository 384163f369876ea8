"""Whole runs with relay, with fakes and the real buffer: what each episode trains, and every way that relay can fail."""

import asyncio
import json
import re
import time

import pytest
from harness import config, digits_count, place, questions

from baton.checkpoint_files import MARKER
from baton.clients import LedgerClient, RelayClient
from baton.engine import Engine
from baton.errors import ConfigError, DeadlineError
from baton.testing import FakeTrainer
from processes import ServiceProcess
from services.coordinator.relay import relay_function
from services.coordinator.state import Life


def engine_with(function=None):
    engine = Engine(prompts=questions, flow=digits_count)
    if function is not None:
        engine.set_relay_sample_fn(function)
    return engine


async def run(buffer, run_id, folder, engine, **sections):
    """(state at the end, sample ids of each step, metrics by episode); the ledger's proof must hold."""
    trainer = FakeTrainer()
    async with place(buffer.address, folder, engine=engine, trainer=trainer, run=config(**sections)) as there:
        there.coordinator.start_run(run_id)
        state = (await there.finish())[-1].state
    async with LedgerClient(buffer.address) as ledger:
        assert list((await ledger.audit(run_id)).faults) == []
    lines = (folder / "metrics.jsonl").read_text().splitlines() if (folder / "metrics.jsonl").exists() else []
    return state, [samples.sample_ids for samples in trainer.trained], [json.loads(line) for line in lines]


def groups_of(steps):
    """Each step's group: with batches of 4 and groups of 4 a step trains one."""
    return [{name.partition("/")[0] for name in step} for step in steps]


async def test_the_page_s_example_trains_the_last_episodes_again(buffer, run_id, tmp_path):
    def relay_sample_fn(episode_relay_buffers):
        buffers = []
        for relay_buffer in episode_relay_buffers:
            buffers += relay_buffer.buffer
        # episode_id = episode_relay_buffers[-1].episode_id
        return buffers

    state, steps, metrics = await run(
        buffer, run_id, tmp_path, engine_with(relay_sample_fn), runtime={"max_relay_episode": 2}
    )  # fmt: skip
    assert (state.life, state.global_step) == (Life.SUCCEEDED, 2 + 4 + 4)
    episode = [[{"e0-p0"}, {"e0-p1"}], [{"e1-p2"}, {"e1-p3"}], [{"e2-p4"}, {"e2-p5"}]]
    assert groups_of(steps) == episode[0] + episode[0] + episode[1] + episode[1] + episode[2]
    assert [line["relay/samples"] for line in metrics] == [8, 16, 16]
    assert [line["sample_age_mean"] for line in metrics] == [0, 0.5, 0.5]
    assert [line["sample_age_max"] for line in metrics] == [0, 1, 1]
    assert [line["relay/share_earlier"] for line in metrics] == [0, 0.5, 0.5]


async def test_samples_that_the_function_changes_are_made_and_not_of_an_earlier_episode(buffer, run_id, tmp_path):
    def copied(episode_relay_buffers):
        *earlier, newest = episode_relay_buffers
        return [sample for kept in earlier for sample in kept.buffer] + [sample.copy() for sample in newest.buffer]

    _, _, metrics = await run(buffer, run_id, tmp_path, engine_with(copied), runtime={"max_relay_episode": 2})
    assert [line["relay/share_earlier"] for line in metrics] == [0, 0.5, 0.5]
    assert [line["relay/share_made"] for line in metrics] == [1, 0.5, 0.5]


async def test_the_function_gets_no_more_than_the_limit_while_earlier_episodes_wait_for_a_checkpoint(
    store, run_file, run_id, tmp_path
):  # fmt: skip
    given = []

    def newest(episode_relay_buffers):
        given.append([relay_buffer.episode_id for relay_buffer in episode_relay_buffers])
        return episode_relay_buffers[-1].buffer

    strict = ServiceProcess("buffer", run_file, tmp_path, "--store", store.url, "--set", "store.ack_on=checkpoint")
    strict.start()
    try:
        sections = {"store": {"ack_on": "checkpoint"}, "runtime": {"max_relay_episode": 2}}
        state, _, _ = await run(strict, run_id, tmp_path, engine_with(newest), **sections)
    finally:
        strict.kill()
    assert (state.life, given) == (Life.SUCCEEDED, [[0], [0, 1], [1, 2]])


async def test_episodes_before_the_offset_are_trained_as_they_are_and_not_kept(buffer, run_id, tmp_path):
    runtime = {"max_relay_episode": -1, "relay_episode_offset": 1, "relay_sample_fn": "concat"}
    _, steps, metrics = await run(buffer, run_id, tmp_path, engine_with(), runtime=runtime)
    first, second, third = [{"e0-p0"}, {"e0-p1"}], [{"e1-p2"}, {"e1-p3"}], [{"e2-p4"}, {"e2-p5"}]
    assert groups_of(steps) == first + second + second + third
    assert "relay/samples" not in metrics[0]
    async with RelayClient(buffer.address) as relay:
        assert [episode.episode_id for episode in await relay.list_history(run_id)] == [1, 2]


async def test_a_built_in_gets_its_parameters_and_the_runs_seed(buffer, run_id, tmp_path):
    runtime = {"max_relay_episode": 3, "relay_sample_fn": "uniform", "relay_sample_params": {"k": 4}}
    chosen = []
    for attempt in range(2):
        _, steps, _ = await run(buffer, f"{run_id}-{attempt}", tmp_path / str(attempt), engine_with(), runtime=runtime)
        assert [len(step) for step in steps] == [4, 4, 4]
        chosen.append(steps)
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize(
    ("name", "params", "rule"),
    [
        ("uniform", {"k": -1}, "k is -1; it must be a whole number from 0"),
        ("uniform", {"k": 1.5}, "k is 1.5; it must be a whole number from 0"),
        ("age_decayed", {"k": 4, "half_life": 0}, "half_life is 0; it must be a number above 0"),
        ("reward_prioritised", {"k": 4, "temperature": 0.0}, "temperature is 0.0; it must be a number above 0"),
        ("newest_tokens", {"max_tokens": -5}, "max_tokens is -5; it must be a whole number from 0"),
        ("newest_tokens", {"max_tokens": "many"}, "max_tokens is 'many'; it must be a whole number from 0"),
        ("newest_tokens", {}, "newest_tokens needs max_tokens, a whole number from 0"),
        ("last", {"k": 4}, "last has no k; it has no parameters"),
    ],
)  # fmt: skip
async def test_parameters_that_a_built_in_cannot_have_are_refused_before_anything_starts(
    buffer, tmp_path, name, params, rule
):  # fmt: skip
    runtime = {"max_relay_episode": 1, "relay_sample_fn": name, "relay_sample_params": params}
    with pytest.raises(ConfigError, match=f"runtime.relay_sample_params: {rule}"):
        async with place(buffer.address, tmp_path, engine=engine_with(), run=config(runtime=runtime)):
            pass


@pytest.mark.parametrize(("name", "params"), [("uniform", {"k": 4}), ("newest_tokens", {"max_tokens": 9})])
def test_a_built_in_that_divides_groups_is_refused_where_they_are_compared(name, params):
    runtime = {"max_relay_episode": 1, "relay_sample_fn": name, "relay_sample_params": params}
    pairs = config(
        runtime=runtime | {"train_micro_batch_size": 4}, algorithm={"name": "online_dpo"}, models={"reference": {}}
    )  # fmt: skip
    with pytest.raises(ConfigError, match=rf"relay_sample_fn: got '{name}', .* online_dpo keeps a group together; .* last"):
        relay_function(pairs, engine_with())
    assert relay_function(config(runtime=runtime), engine_with())


async def test_choosing_nothing_trains_nothing_and_is_reported(buffer, run_id, tmp_path):
    state, steps, metrics = await run(
        buffer, run_id, tmp_path, engine_with(lambda _: []), runtime={"max_relay_episode": 1}
    )  # fmt: skip
    assert (state.life, steps) == (Life.SUCCEEDED, [])
    assert [(line["relay/samples"], line["train_steps"]) for line in metrics] == [(0, 0)] * 3


async def test_a_function_that_raises_fails_the_run_with_its_error_and_line(buffer, run_id, tmp_path):
    def broken(buffers):
        return buffers[7]

    state, steps, _ = await run(buffer, run_id, tmp_path, engine_with(broken), runtime={"max_relay_episode": 1})
    assert (state.life, steps) == (Life.FAILED, [])
    assert "the relay function raised IndexError: list index out of range" in state.error
    assert "test_coordinator_relay.py" in state.error


async def test_a_function_that_hangs_fails_the_run_within_its_deadline(buffer, run_id, tmp_path):
    began = time.monotonic()
    state, _, _ = await run(
        buffer, run_id, tmp_path, engine_with(lambda _: time.sleep(60)), runtime={"max_relay_episode": 1},
        deadlines={"relay_s": 0.5},
    )  # fmt: skip
    assert state.life is Life.FAILED
    assert "did not return within 0.5 s" in state.error and "deadlines.relay_s" in state.error
    assert "buffer" not in state.error, "which has nothing to do with it"
    assert time.monotonic() - began < 40


async def test_a_buffer_that_is_late_with_a_touched_sample_is_not_told_as_a_slow_function(buffer, run_id, tmp_path):
    def touching(buffers):
        raise DeadlineError("RelayService.ReadSamples at 127.0.0.1:1 did not answer within 60 s")

    state, _, _ = await run(buffer, run_id, tmp_path, engine_with(touching), runtime={"max_relay_episode": 1})
    assert state.life is Life.FAILED
    assert "ReadSamples at 127.0.0.1:1 did not answer within 60 s; raise deadlines.buffer_s" in state.error
    assert "relay_s" not in state.error


async def test_a_function_that_returns_no_list_fails_the_run(buffer, run_id, tmp_path):
    state, _, _ = await run(buffer, run_id, tmp_path, engine_with(lambda _: "all"), runtime={"max_relay_episode": 1})
    assert "returned a str; it must return a list" in state.error


async def test_samples_of_a_version_that_was_never_published_fail_the_run_instead_of_being_trained_unchecked(
    buffer, run_id, tmp_path
):  # fmt: skip
    def of_other_weights(buffers):
        chosen = [sample.copy() for sample in buffers[-1].buffer]
        for sample in chosen:
            sample["policy_version_max"] = 99
        return chosen

    state, steps, _ = await run(buffer, run_id, tmp_path, engine_with(of_other_weights), runtime={"max_relay_episode": 1})
    assert (state.life, steps) == (Life.FAILED, [])
    assert "chose samples of policy version 99, which this run knows no digest of" in state.error


async def test_digests_of_versions_that_the_history_shows_outlive_newer_ones(buffer, run_id, tmp_path, monkeypatch):
    monkeypatch.setattr("services.coordinator.state.KEPT_DIGESTS", 2)
    runtime = {"num_episode": 6, "max_relay_episode": -1, "relay_sample_fn": "concat", "save_episode_interval": 5}
    ended, steps, _ = await run(buffer, run_id, tmp_path, engine_with(), runtime=runtime)
    assert ended.life is Life.SUCCEEDED, ended.error
    assert {"e0-p0", "e0-p1"} <= set.union(*groups_of(steps[-12:]))
    assert sorted(ended.digests) == list(range(8)), "version 1 is of episode 0"
    position = json.loads((tmp_path / "checkpoints" / "step-30" / MARKER).read_text())["run"]
    assert position["history_version"] == 1


async def test_the_run_stops_at_its_history_limit_or_evicts_as_it_was_told(buffer, run_id, tmp_path):
    runtime = {"max_relay_episode": -1, "relay_sample_fn": "last"}
    state, _, _ = await run(
        buffer, run_id, tmp_path / "a", engine_with(), runtime=runtime, store={"relay_max_bytes": 3000}
    )  # fmt: skip
    assert state.life is Life.FAILED
    assert "more than store.relay_max_bytes (3000)" in state.error
    evict = {"relay_max_bytes": 3000, "relay_when_full": "evict"}
    state, _, _ = await run(buffer, f"{run_id}-b", tmp_path / "b", engine_with(), runtime=runtime, store=evict)
    assert state.life is Life.SUCCEEDED


async def test_an_episode_larger_than_the_history_may_be_fails_the_run_with_both_numbers(buffer, run_id, tmp_path):
    runtime = {"max_relay_episode": -1, "relay_sample_fn": "last"}
    store = {"relay_max_bytes": 1000, "relay_when_full": "evict"}
    state, _, _ = await run(buffer, run_id, tmp_path, engine_with(), runtime=runtime, store=store)
    assert state.life is Life.FAILED
    assert re.search(r"episode 0.* alone has \d{4} bytes, more than store.relay_max_bytes \(1000\)", state.error)


async def test_two_functions_or_none_are_refused_before_anything_starts(buffer, tmp_path):
    for engine, runtime, message in (
        (engine_with(), {}, "relay is on and needs a function"),
        (engine_with(len), {"relay_sample_fn": "last"}, "the run file and the app's engine both have one"),
    ):
        with pytest.raises(ConfigError, match=message):
            async with place(buffer.address, tmp_path, engine=engine, run=config({"max_relay_episode": 1} | runtime)):
                pass


def test_what_cannot_be_called_is_no_relay_function():
    with pytest.raises(ConfigError, match="got a str"):
        engine_with("concat")


async def test_a_step_is_trained_while_the_rest_of_the_episode_is_rolled_out(buffer, run_id, tmp_path):
    first_step_trained = asyncio.Event()

    async def slow_second_group(context, prompts):
        groups = [group async for group in digits_count(context, prompts)]
        yield groups[0]
        await asyncio.wait_for(first_step_trained.wait(), 60)
        yield groups[1]

    class Telling(FakeTrainer):
        async def TrainStep(self, request, context):
            answer = await super().TrainStep(request, context)
            first_step_trained.set()
            return answer

    engine = Engine(prompts=questions, flow=slow_second_group)
    async with place(buffer.address, tmp_path, engine=engine, trainer=Telling()) as there:
        there.coordinator.start_run(run_id)
        assert (await there.finish())[-1].state.life is Life.SUCCEEDED


async def test_with_acknowledgement_by_checkpoint_samples_stay_until_one_holds_them(buffer, run_id, tmp_path, run_file):
    sections = {"store": {"ack_on": "checkpoint"}, "runtime": {"save_episode_interval": 2}}
    held = []

    class Watching(FakeTrainer):
        async def SaveCheckpoint(self, request, context):
            async with LedgerClient(there.coordinator.run.driver._services.buffer.address) as ledger:
                held.append([episode.episode_id for episode in await ledger.list_episodes(run_id)])
            return await super().SaveCheckpoint(request, context)

    async with place(buffer.address, tmp_path, trainer=Watching(), engine=engine_with(), run=config(**sections)) as there:
        there.coordinator.start_run(run_id)
        assert (await there.finish())[-1].state.life is Life.SUCCEEDED
    assert held == [[0, 1], [2]]
    async with LedgerClient(buffer.address) as ledger:
        assert await ledger.list_episodes(run_id) == []
