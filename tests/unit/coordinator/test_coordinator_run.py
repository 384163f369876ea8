"""Whole runs against fakes and the real buffer: what they leave behind, and every way that they can end."""

import asyncio
import json
import time

import pytest
from harness import config, digits_count, place, questions

from baton.clients import BufferClient, LedgerClient
from baton.clients.rollout import SamplingParams
from baton.engine import Engine
from baton.errors import ConfigError, ConflictError, InvalidRequestError, NotFoundError
from baton.testing import FakeRollout, FakeTrainer
from services.coordinator.state import Life, RunState


async def run_to_end(there, run_id):
    there.coordinator.start_run(run_id)
    return (await there.finish())[-1].state


def version_times_index(prompt, index, version):
    return str(version * index)


async def second_group_late(context, prompts):
    async for group in digits_count(context, prompts):
        yield group
        await asyncio.sleep(60)


async def test_three_episodes_succeed_and_leave_metrics_plot_summary_checkpoint_and_export(buffer, run_id, tmp_path):
    trainer = FakeTrainer()
    fakes = FakeRollout(version_times_index), FakeRollout(version_times_index)
    async with place(buffer.address, tmp_path, trainer=trainer, rollouts=fakes) as there:
        state = await run_to_end(there, run_id)
    assert (state.life, state.episode, state.global_step, state.policy_version) == (Life.SUCCEEDED, 3, 6, 4)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["episode"] for line in lines] == [0, 1, 2]
    assert [line["policy_version"] for line in lines] == [1, 2, 3]  # version 1 is published before episode 0
    assert [line["reward_mean"] for line in lines] == pytest.approx([1.5, 3.0, 4.5])
    assert len({line["weights_digest"] for line in lines}) == 3
    known = {"samples": 8, "train_steps": 2, "grad_norm": 1.0, "finish_rate": 1.0, "truncated_share": 0.0}
    assert lines[0] | known == lines[0]
    assert {"seconds/generate", "seconds/train", "seconds/publish", "seconds/episode", "tokens_per_s"} <= set(lines[0])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["state"], summary["first_reward_mean"], summary["last_reward_mean"]) == ("succeeded", 2.25, 3.75)
    assert (tmp_path / "reward.png").read_bytes().startswith(b"\x89PNG")
    assert trainer.checkpoints == [str(tmp_path / "checkpoints" / "step-6")] == [summary["checkpoint"]]
    assert (tmp_path / "export" / "config.json").exists()


async def test_what_is_trained_is_what_was_sampled_with_rewards_statistics_and_digests(buffer, run_id, tmp_path):
    trainer = FakeTrainer()
    async with place(buffer.address, tmp_path, trainer=trainer) as there:
        await run_to_end(there, run_id)
    first = trainer.trained[0]
    assert first.sample_ids == ["e0-p0/0", "e0-p0/1", "e0-p0/2", "e0-p0/3"]
    assert first.rewards.tolist() == [0, 1, 2, 3]
    assert first.group_reward_mean.tolist() == [1.5] * 4
    assert first.group_sizes.tolist() == [4] * 4
    assert [json.loads(text)["number"] for text in first.metadata] == [0] * 4
    versions = [samples.policy_version_max.tolist() for samples in trainer.trained]
    assert versions == [[1] * 4] * 2 + [[2] * 4] * 2 + [[3] * 4] * 2
    committed = [dict(request.expected_digests) for request in trainer.requests]
    assert committed == [{int(s.policy_version_max[0]): s.weights_digests[0]} for s in trainer.trained]
    consumed = [json.loads(samples.metadata[0])["number"] for samples in trainer.trained]
    assert consumed == [0, 1, 2, 3, 4, 0]  # the third episode straddles the wrap


async def test_every_pass_takes_every_step(buffer, run_id, tmp_path):
    trainer = FakeTrainer()
    run = config(runtime={"num_episode": 1, "num_training_epoch": 3})
    async with place(buffer.address, tmp_path, trainer=trainer, run=run) as there:
        state = await run_to_end(there, run_id)
    assert state.global_step == 6
    passes = [sorted(trainer.trained[i].sample_ids + trainer.trained[i + 1].sample_ids) for i in (0, 2, 4)]
    assert passes[0] == passes[1] == passes[2] and len(set(passes[0])) == 8


async def test_trained_episodes_are_freed_and_the_state_is_stored(buffer, run_id, tmp_path):
    async with place(buffer.address, tmp_path) as there:
        await run_to_end(there, run_id)
    async with BufferClient(buffer.address) as client:
        for episode in range(3):
            with pytest.raises(NotFoundError):
                await client.get_episode(run_id, episode)
    async with LedgerClient(buffer.address) as client:
        stored = RunState.from_json((await client.get_state(run_id, "coordinator"))[0])
        assert list((await client.audit(run_id)).faults) == []
    assert (stored.life, stored.episode, stored.prompts_consumed, stored.phase) == (Life.SUCCEEDED, 3, 6, "")
    assert sorted(stored.digests) == [0, 1, 2, 3, 4]


async def test_checkpoints_are_written_at_the_interval_and_at_the_end_once(buffer, run_id, tmp_path):
    trainer = FakeTrainer()
    run = config(runtime={"num_episode": 4, "save_episode_interval": 2})
    async with place(buffer.address, tmp_path, trainer=trainer, run=run) as there:
        await run_to_end(there, run_id)
    assert [path.rpartition("/")[2] for path in trainer.checkpoints] == ["step-4", "step-8"]


async def test_weights_are_sent_as_often_as_sync_frequency_says(buffer, run_id, tmp_path):
    for frequency, versions in ((2, [1, 1, 2]), (0, [0, 0, 0])):
        trainer = FakeTrainer()
        run = config(models={"policy": {"sync_frequency": frequency}})
        async with place(buffer.address, tmp_path / str(frequency), trainer=trainer, run=run) as there:
            state = await run_to_end(there, f"{run_id}-{frequency}")
        assert state.life is Life.SUCCEEDED, state.error
        assert [int(samples.policy_version_max[0]) for samples in trainer.trained[::2]] == versions


async def test_samples_of_other_weights_stop_the_run_and_name_the_side(buffer, run_id, tmp_path):
    good, bad = FakeRollout(), FakeRollout(delay_s=0.1)
    bad.sampled_digest = "0" * 8
    async with place(buffer.address, tmp_path, rollouts=(good, bad)) as there:
        state = await run_to_end(there, run_id)
        address = there.rollouts[1].address
    assert state.life is Life.FAILED
    assert "the rollout side is behind" in state.error
    assert f"replica {address} sampled e0-p1/0 as version 1 from weights 00000000" in state.error
    assert f"published version 1 as {good.weights_digest}" in state.error


async def test_a_trainer_that_was_restarted_within_the_run_is_noticed_at_its_next_step(buffer, run_id, tmp_path):
    def forget(global_step, samples):
        if global_step == 3:
            trainer.global_step = 0
        return {"loss": 0.0}

    trainer = FakeTrainer(forget)
    async with place(buffer.address, tmp_path, trainer=trainer) as there:
        state = await run_to_end(there, run_id)
    assert state.life is Life.FAILED
    assert "optimizer step 1 trained p0-s0 of episode 0 already" in state.error


async def test_a_trainer_that_dies_in_a_step_fails_the_run_soon(buffer, run_id, tmp_path):
    async with place(buffer.address, tmp_path, trainer=FakeTrainer(delay_s=60)) as there:
        there.coordinator.start_run(run_id)
        await there.until("train")
        begun = time.monotonic()
        await there.trainer.kill()
        state = (await there.finish())[-1].state
    assert state.life is Life.FAILED
    assert f"episode 0, train: trainer at {there.trainer.address}" in state.error
    assert time.monotonic() - begun < 40  # the step's own deadline is half an hour
    assert json.loads((tmp_path / "summary.json").read_text())["error"] == state.error


async def test_a_service_that_never_answers_is_named_after_the_startup_deadline(buffer, run_id, tmp_path):
    run = config(deadlines={"startup_s": 3})
    async with place(buffer.address, tmp_path, run=run) as there:
        await there.trainer.kill()
        state = await run_to_end(there, run_id)
    assert f"episode 0, start: trainer at {there.trainer.address} was not ready within 3 s" in state.error
    assert "raise deadlines.startup_s" in state.error


async def test_a_prompt_that_is_too_long_is_told_with_both_lengths(buffer, run_id, tmp_path):
    fake = FakeRollout()
    fake.max_model_len = 5
    async with place(buffer.address, tmp_path, rollouts=(fake,)) as there:
        state = await run_to_end(there, run_id)
    assert "prompt e0-p0 has 10 tokens, but the model's context is 5" in state.error


@pytest.mark.parametrize(
    ("phase", "fakes"),
    [
        ("generate", {"rollouts": (FakeRollout(delay_s=60),)}),
        ("train", {"trainer": FakeTrainer(delay_s=0.5)}),
        ("train", {"trainer": FakeTrainer(delay_s=0.5), "engine": Engine(prompts=questions, flow=second_group_late)}),
    ],
)
async def test_a_stop_ends_the_run_within_seconds_in_any_phase(buffer, run_id, tmp_path, phase, fakes):
    async with place(buffer.address, tmp_path, **fakes) as there:
        there.coordinator.start_run(run_id)
        await there.until(phase)
        stopping = there.coordinator.stop_run(run_id, save_checkpoint=False)
        assert stopping.state.life is Life.STOPPING
        state = (await there.finish(30))[-1].state
    assert (state.life, state.error) == (Life.STOPPED, "")
    assert state.global_step == (1 if phase == "train" else 0)  # the step in flight was finished, the next not begun


async def test_a_stop_writes_the_checkpoint_that_was_asked_for(buffer, run_id, tmp_path):
    trainer = FakeTrainer()
    async with place(buffer.address, tmp_path, trainer=trainer, rollouts=(FakeRollout(delay_s=60),)) as there:
        there.coordinator.start_run(run_id)
        await there.until("generate")
        there.coordinator.stop_run(run_id, save_checkpoint=True)
        state = (await there.finish(30))[-1].state
        again = there.coordinator.stop_run(run_id, save_checkpoint=True)
    assert state.life is again.state.life is Life.STOPPED
    assert trainer.checkpoints == [state.checkpoint]


async def test_closing_cuts_off_even_a_step_that_takes_too_long(buffer, run_id, tmp_path, monkeypatch):
    monkeypatch.setattr("services.coordinator.coordinator.STOP_GRACE_S", 0.2)
    async with place(buffer.address, tmp_path, trainer=FakeTrainer(delay_s=60)) as there:
        there.coordinator.start_run(run_id)
        await there.until("train")
        await asyncio.wait_for(there.coordinator.close(), 20)
        assert there.coordinator.get_run().state.life is Life.STOPPED


async def test_consumed_samples_are_skipped_at_the_start(buffer, run_id, tmp_path):
    trainer = FakeTrainer()
    run = config(runtime={"consumed_samples": 12, "num_episode": 1})
    async with place(buffer.address, tmp_path, trainer=trainer, run=run) as there:
        await run_to_end(there, run_id)
    assert [samples.group_ids[0] for samples in trainer.trained] == ["e0-p3", "e0-p4"]  # 12 samples are 3 prompts x 4


@pytest.mark.parametrize(("prompts_used", "responses", "told"), [(1, 4, "only 4"), (2, 8, "more than 8")])
async def test_a_flow_with_another_total_is_told_to_use_dynamic(buffer, run_id, tmp_path, prompts_used, responses, told):
    async def flow(context, prompts):
        async for group in context.generate(prompts[:prompts_used], SamplingParams(n=responses)):
            yield group.with_rewards([1.0] * responses)

    async with place(buffer.address, tmp_path, engine=Engine(prompts=questions, flow=flow)) as there:
        state = await run_to_end(there, run_id)
    assert f"the flow produced {told} samples in episode 0" in state.error and "use dynamic" in state.error


async def test_dynamic_trains_whatever_the_flow_produces(buffer, run_id, tmp_path):
    async def half(context, prompts):
        async for group in digits_count(context, prompts[:1]):
            yield group

    trainer, engine = FakeTrainer(), Engine(prompts=questions, flow=half)
    run = config(runtime={"stream_data_loader_type": "dynamic", "num_episode": 1})
    async with place(buffer.address, tmp_path, trainer=trainer, run=run, engine=engine) as there:
        state = await run_to_end(there, run_id)
    assert (state.life, len(trainer.trained)) == (Life.SUCCEEDED, 1)


async def test_every_group_that_a_flow_makes_of_a_prompt_is_trained(buffer, run_id, tmp_path):
    async def twice(context, prompts):
        for _ in range(2):
            async for group in digits_count(context, prompts):
                yield group

    trainer, engine = FakeTrainer(), Engine(prompts=questions, flow=twice)
    run = config(runtime={"stream_data_loader_type": "dynamic", "num_episode": 1})
    async with place(buffer.address, tmp_path, engine=engine, trainer=trainer, run=run) as there:
        state = await run_to_end(there, run_id)
    assert state.life is Life.SUCCEEDED, state.error
    trained = sorted(sample_id for samples in trainer.trained for sample_id in samples.sample_ids)
    assert trained == sorted(f"e0-p{p}{again}/{i}" for p in range(2) for again in ("", "+1") for i in range(4))


async def test_an_error_in_the_users_flow_names_its_line(buffer, run_id, tmp_path):
    async def broken(context, prompts):
        raise KeyError("oops")
        yield

    async with place(buffer.address, tmp_path, engine=Engine(prompts=questions, flow=broken)) as there:
        state = await run_to_end(there, run_id)
    assert "episode 0, generate: KeyError: 'oops'" in state.error and "test_coordinator_run.py:" in state.error


async def test_one_coordinator_has_one_run_and_starting_it_again_changes_nothing(buffer, run_id, tmp_path):
    async with place(buffer.address, tmp_path) as there:
        with pytest.raises(InvalidRequestError, match=r"run id '\.\./x'"):
            there.coordinator.start_run("../x")
        with pytest.raises(NotFoundError, match="no run was started"):
            there.coordinator.watch_run()
        there.coordinator.start_run(run_id)
        await there.until("generate")
        assert there.coordinator.start_run(run_id).state.life is Life.RUNNING
        with pytest.raises(ConflictError, match=f"this coordinator has run '{run_id}'"):
            there.coordinator.start_run("other")
        assert (await there.finish())[-1].state.life is Life.SUCCEEDED
        assert there.coordinator.start_run(run_id).state.life is Life.SUCCEEDED
    async with place(buffer.address, tmp_path) as there:
        with pytest.raises(ConflictError, match="holds the metrics of another run"):
            there.coordinator.start_run(run_id)
    async with place(buffer.address, tmp_path / "elsewhere") as there:
        assert "exists already (succeeded" in (await run_to_end(there, run_id)).error


async def test_options_that_this_coordinator_does_not_honour_are_refused(buffer, tmp_path):
    for runtime, message in (
        ({"max_relay_episode": 1}, "relay is on and needs a function"),
        ({"max_relay_episode": 1, "relay_sample_fn": "lats"}, "there is no built-in 'lats'; choose from concat, last"),
        ({"max_relay_episode": 1, "relay_sample_fn": "nowhere:fn"}, "nowhere:fn cannot be imported: No module named"),
        ({"eval_episode_interval": 2}, "runtime.eval_episode_interval: got 2; needs prompts that are not"),
    ):
        with pytest.raises(ConfigError, match=message):
            async with place(buffer.address, tmp_path, run=config(runtime=runtime)):
                pass
