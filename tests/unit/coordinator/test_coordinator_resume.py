"""A run that ends at any point goes on from its newest checkpoint, with fakes and the real buffer: nothing is lost, nothing
is trained twice in the lineage of the weights, and every curve has each point once."""

import asyncio
import json
from pathlib import Path

import pytest
from harness import config, place, questions
from sittings import EPISODES, PLAIN, RELAYED, STEPS, Dies, rows, sit, trained

from baton.checkpoint_files import read_marker
from baton.clients import LedgerClient
from baton.data_checkpoints import data_checkpoint_to_resume
from baton.engine import Engine
from baton.errors import RunFailedError
from baton.run_checkpoints import run_checkpoints
from baton.testing import FakeRollout, FakeTrainer
from markers import write_marker
from services.coordinator.resuming import Resume
from services.coordinator.state import Life


@pytest.mark.parametrize("sections", [PLAIN, RELAYED], ids=["plain", "relayed"])
async def test_wherever_a_run_ends_what_follows_is_as_if_it_had_not(buffer, run_id, tmp_path, sections):
    whole = FakeTrainer()
    await sit(buffer, f"{run_id}-whole", tmp_path / "whole", whole, sections)
    assert len(whole.trained) == STEPS
    for last in range(4, STEPS):  # the first checkpoint is of step 4
        run, folder, first, second = f"{run_id}-{last}", tmp_path / str(last), Dies(last), FakeTrainer()
        assert (await sit(buffer, run, folder, first, sections)).life is Life.FAILED
        state = await sit(buffer, run, folder, second, sections, Resume())
        assert state.life is Life.SUCCEEDED, state.error
        held = 4 if last < 8 else 8
        assert trained(first.trained[:held], second.trained) == trained(whole.trained)
        assert [row["episode"] for row in rows(folder)] == list(range(EPISODES))
        assert [row["global_step"] for row in rows(folder, "steps.jsonl")] == list(range(1, STEPS + 1))
        same = "policy_version", "weights_digest", "reward_mean", "loss"
        one, other = ([[row[name] for name in same] for row in rows(of)] for of in (folder, tmp_path / "whole"))
        assert one == other
        async with LedgerClient(buffer.address) as ledger:
            audit = await ledger.audit(run)
        assert (list(audit.faults), audit.ended_episodes, audit.optimizer_steps) == ([], EPISODES, STEPS)
        assert state.prompts_consumed == 2 * EPISODES


class Waits(FakeTrainer):
    """Begins a step only while it may `go` on."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.go.set()

    async def _step(self, request):
        await self.go.wait()
        return await super()._step(request)


class LostAfterSaving(FakeTrainer):
    """Writes its first checkpoint, and answers with an error: the coordinator never hears of it."""

    async def SaveCheckpoint(self, request, context):
        await super().SaveCheckpoint(request, context)
        raise RunFailedError("the machine is gone")


@pytest.mark.parametrize("ack_on", ["step", "checkpoint"])
async def test_a_checkpoint_counts_from_the_moment_that_it_has_its_name(buffer, run_id, tmp_path, ack_on):
    sections = PLAIN | {"store": {"ack_on": ack_on}}
    first, second = LostAfterSaving(), FakeTrainer()
    assert (await sit(buffer, run_id, tmp_path, first, sections)).life is Life.FAILED
    assert [row["episode"] for row in rows(tmp_path)] == [0], "the second episode's row comes after its checkpoint"
    state = await sit(buffer, run_id, tmp_path, second, sections, Resume())
    assert state.life is Life.SUCCEEDED, state.error
    assert len(first.trained) == 4 and len(second.trained) == STEPS - 4
    found = rows(tmp_path)
    assert [row["episode"] for row in found] == list(range(EPISODES))
    assert found[1]["reward_mean"] == found[0]["reward_mean"] and found[1]["train_steps"] == 2


async def test_an_earlier_checkpoint_may_be_named_and_later_ones_are_set_aside(buffer, run_id, tmp_path):
    first = FakeTrainer()
    await sit(buffer, run_id, tmp_path, first)
    second = FakeTrainer()
    state = await sit(buffer, run_id, tmp_path, second, resume=Resume(4))
    assert state.life is Life.SUCCEEDED, state.error
    assert trained(first.trained[:4], second.trained) == trained(first.trained)
    assert [one.global_step for one in run_checkpoints(tmp_path)] == [4, 8, 10]
    aside = sorted(path.name for path in (tmp_path / "checkpoints").glob("*.rolled-back"))
    assert aside == ["step-10.rolled-back", "step-8.rolled-back"]
    gone = rows(tmp_path, "rolled-back.jsonl")
    assert [row["global_step"] for row in gone if row["file"] == "steps.jsonl"] == [5, 6, 7, 8, 9, 10]
    assert {row["resumed_from"] for row in gone} == {4}


async def test_a_checkpoint_whose_marker_is_damaged_is_passed_over_and_the_one_before_it_taken(buffer, run_id, tmp_path):
    first, second = Dies(9), FakeTrainer()
    await sit(buffer, run_id, tmp_path, first)
    marker = tmp_path / "checkpoints" / "step-8" / "baton.json"
    marker.write_text(marker.read_text().replace('"episode": 4', '"episode": 3'))
    state = await sit(buffer, run_id, tmp_path, second, resume=Resume())
    assert state.life is Life.SUCCEEDED, state.error
    assert len(second.trained) == STEPS - 4
    assert trained(first.trained[:8]) == trained(first.trained[:4], second.trained[:4])
    assert [one.global_step for one in run_checkpoints(tmp_path)] == [4, 8, 10]


async def test_a_run_that_has_succeeded_goes_on_when_it_shall_have_more_episodes(buffer, run_id, tmp_path):
    await sit(buffer, run_id, tmp_path, FakeTrainer())
    longer = {"runtime": PLAIN["runtime"] | {"num_episode": EPISODES + 2}}
    state = await sit(buffer, run_id, tmp_path, FakeTrainer(), longer, Resume())
    assert (state.life, state.episode, state.global_step) == (Life.SUCCEEDED, EPISODES + 2, STEPS + 4)
    assert [row["episode"] for row in rows(tmp_path)] == list(range(EPISODES + 2))


async def test_a_checkpoint_in_the_midst_of_an_episode_is_not_one_to_go_on_from(buffer, run_id, tmp_path):
    first = FakeTrainer(delay_s=0.3)
    async with place(buffer.address, tmp_path, trainer=first, run=config(**PLAIN)) as there:
        there.coordinator.start_run(run_id)
        async for event in there.coordinator.watch_run():
            if event.state.global_step == 5 and event.state.phase == "train":
                there.coordinator.stop_run(run_id, save_checkpoint=True)
        state = there.coordinator.run.driver.state
    assert state.life is Life.STOPPED and state.global_step in (5, 6), state.error
    assert Path(state.checkpoint).is_dir() and Path(state.checkpoint).name != "step-4"
    assert [one.global_step for one in run_checkpoints(tmp_path)] == [4]
    second = FakeTrainer()
    assert (await sit(buffer, run_id, tmp_path, second, resume=Resume())).life is Life.SUCCEEDED
    assert len(second.trained) == STEPS - 4


async def test_a_coordinator_that_is_still_at_work_fails_once_its_run_is_taken_over(buffer, run_id, tmp_path):
    slow = Waits()
    async with place(buffer.address, tmp_path, trainer=slow, run=config(**PLAIN)) as there:
        there.coordinator.start_run(run_id)
        async for event in there.coordinator.watch_run():
            if event.report is not None and event.report.episode_id == 1:
                slow.go.clear()
                break
        assert (await sit(buffer, run_id, tmp_path, FakeTrainer(), resume=Resume())).life is Life.SUCCEEDED
        slow.go.set()
        state = (await there.finish())[-1].state
    assert state.life is Life.FAILED
    async with LedgerClient(buffer.address) as ledger:
        assert list((await ledger.audit(run_id)).faults) == []


async def test_services_that_live_on_when_their_run_fails_go_on_with_it_when_they_are_asked(buffer, run_id, tmp_path):
    trainer = Dies(7)
    async with place(buffer.address, tmp_path, trainer=trainer, run=config(**PLAIN)) as there:
        assert (await there.run(run_id)).life is Life.FAILED
        trainer.last = STEPS
        assert there.coordinator.start_run(run_id).state.life is Life.FAILED, "it has ended, and nobody said resume"
        there.coordinator.start_run(run_id, Resume())
        state = (await there.finish())[-1].state
    assert state.life is Life.SUCCEEDED, state.error
    assert trained(trainer.trained[:4], trainer.trained[7:]) == trained(trainer.trained[:7], trainer.trained[10:])
    assert [row["episode"] for row in rows(tmp_path)] == list(range(EPISODES))


async def test_a_replica_that_lives_on_with_a_later_version_gets_the_weights_as_a_version_after_it(buffer, run_id, tmp_path):
    replica, second = FakeRollout(), FakeTrainer()
    await sit(buffer, run_id, tmp_path, Dies(7), rollouts=(replica,))
    assert replica.policy_version == 4
    state = await sit(buffer, run_id, tmp_path, second, resume=Resume(), rollouts=(replica,))
    assert state.life is Life.SUCCEEDED, state.error
    assert [int(samples.policy_version_max[0]) for samples in second.trained] == [5, 5, 6, 6, 7, 7]


async def test_weights_that_no_version_was_made_of_become_the_next_one(buffer, run_id, tmp_path):
    sections = PLAIN | {"models": {"policy": {"sync_frequency": 3}}}
    await sit(buffer, run_id, tmp_path, Dies(4), sections)
    second = FakeTrainer()
    state = await sit(buffer, run_id, tmp_path, second, sections, Resume())
    assert state.life is Life.SUCCEEDED, state.error
    assert [int(samples.policy_version_max[0]) for samples in second.trained] == [2, 2, 3, 3, 3, 3]


@pytest.mark.parametrize("sits", [1, 2])
async def test_evaluations_are_there_once_each(buffer, run_id, tmp_path, sits):
    sections = {
        "runtime": PLAIN["runtime"] | {"eval_episode_interval": 2}, "prompts": {"source": "app", "holdout": 2},
        "rewards": {"functions": [{"function": "reward_functions:length"}]},
    }  # fmt: skip
    engine = Engine(prompts=questions)
    if sits == 2:
        await sit(buffer, run_id, tmp_path, LostAfterSaving(), sections, engine=engine)
    resume = Resume() if sits == 2 else None
    state = await sit(buffer, run_id, tmp_path, FakeTrainer(), sections, resume, engine)
    assert state.life is Life.SUCCEEDED, state.error
    found = [(row["finished_episodes"], row["global_step"]) for row in rows(tmp_path, "evaluations.jsonl")]
    assert found == [(0, 0), (2, 4), (4, 8)]
    assert ["eval/reward" in row for row in rows(tmp_path)] == [False, True, False, True, False]


async def test_without_a_checkpoint_there_is_nothing_to_resume(buffer, run_id, tmp_path):
    await sit(buffer, run_id, tmp_path, Dies(3))
    state = await sit(buffer, run_id, tmp_path, FakeTrainer(), resume=Resume())
    assert state.life is Life.FAILED
    assert "no whole checkpoint between two episodes" in state.error and "save_episode_interval" in state.error


async def test_a_run_that_the_store_has_lost_is_not_resumed(buffer, run_id, tmp_path):
    await sit(buffer, run_id, tmp_path, FakeTrainer())
    other = f"{run_id}-other"
    state = await sit(buffer, other, tmp_path, FakeTrainer(), resume=Resume())
    assert f"is a checkpoint of run {run_id!r}, not of {other!r}" in state.error
    for path in (tmp_path / "checkpoints").iterdir():
        write_marker(path, {"run": read_marker(path)["run"] | {"run_id": other}})
    state = await sit(buffer, other, tmp_path, FakeTrainer(), resume=Resume())
    assert f"the store knows no run {other!r}" in state.error


async def test_data_checkpoints_say_how_far_the_run_was_and_only_the_newest_are_kept(buffer, run_id, tmp_path):
    data = tmp_path / "data"
    runtime = PLAIN["runtime"] | {"data_checkpoint_path": str(data), "max_data_ckpt_nums": 2}
    await sit(buffer, run_id, tmp_path / "run", FakeTrainer(), {"runtime": runtime})
    assert sorted(path.name for path in data.iterdir()) == [
        "latest_checkpointed_iteration.txt", "step-00000008.json", "step-00000010.json",
    ]  # fmt: skip
    assert (data / "latest_checkpointed_iteration.txt").read_text() == "10\n"
    assert json.loads((data / "step-00000008.json").read_text()) == {
        "episode": 4, "train_iteration": 8, "consumed_samples": 32, "sample_per_episode": 8,
        "run": str(tmp_path / "run"), "checkpoint": str(tmp_path / "run" / "checkpoints" / "step-8"),
    }  # fmt: skip


async def test_a_data_checkpoint_that_is_gone_back_to_stays_though_as_many_newer_ones_as_are_kept_are_there(
    buffer, run_id, tmp_path
):  # fmt: skip
    data, folder = tmp_path / "data", tmp_path / "run"
    runtime = PLAIN["runtime"] | {"data_checkpoint_path": str(data), "max_data_ckpt_nums": 2}
    await sit(buffer, run_id, folder, FakeTrainer(), {"runtime": runtime})
    await sit(buffer, run_id, folder, Dies(4), {"runtime": runtime}, Resume(4))
    assert sorted(path.name for path in data.iterdir()) == ["latest_checkpointed_iteration.txt", "step-00000004.json"]
    assert data_checkpoint_to_resume(data).checkpoint == str(folder / "checkpoints" / "step-4")


async def test_the_same_file_asks_for_the_same_random_numbers_and_each_group_and_repetition_for_its_own(
    buffer, run_id, tmp_path
):
    async def asks_twice(context, prompts):
        again = [item async for item in context.generate(prompts)]
        async for group in context.generate([group.prompt for group in again]):
            yield group.with_rewards([1.0] * 4)

    seeds = []
    for sitting in range(2):
        replica = FakeRollout()
        engine = Engine(prompts=questions, flow=asks_twice)
        await sit(buffer, f"{run_id}-{sitting}", tmp_path / str(sitting), FakeTrainer(), engine=engine, rollouts=(replica,))
        seeds.append({(one.episode_id, p.group_id): [] for one in replica.requests for p in one.prompts})
        for request in replica.requests:
            for prompt in request.prompts:
                seeds[-1][request.episode_id, prompt.group_id].append(request.sampling.seed)
    assert seeds[0] == seeds[1]
    assert all(len(set(asked)) == 2 for asked in seeds[0].values())
    assert len({asked[0] for asked in seeds[0].values()}) == EPISODES, "the group's own part the replica adds"


async def test_a_run_that_need_not_be_reproducible_lets_the_replica_draw(buffer, run_id, tmp_path):
    replica = FakeRollout()
    sections = {"runtime": PLAIN["runtime"] | {"reproducible": False}}
    await sit(buffer, run_id, tmp_path, FakeTrainer(), sections, rollouts=(replica,))
    assert not any(request.sampling.HasField("seed") for request in replica.requests)
