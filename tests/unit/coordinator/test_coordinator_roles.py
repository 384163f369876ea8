"""Flows by the roles of a run: columns that the run's models give, rewards of a reward model, engines of one algorithm."""

import asyncio
import re

import numpy as np
import pytest
from harness import TrainerGroup, config, digits_count, place, questions
from reward_functions import length

from baton.engine import DPOEngine, Engine, GRPOEngine, Model, OnlineDPOEngine, RLHFEngine
from baton.errors import ConfigError, ServiceFaultError
from baton.samples import RewardStatus
from services.coordinator.state import Life

SIX = ("policy", "reference", "reward", "value", "ppo_policy", "ppo_value")
PPO = {"algorithm": {"name": "ppo"}, "models": {"reference": {}, "ppo_value": {}}}
ALL_SIX = {"algorithm": {"name": "ppo"}, "models": {"reference": {}, "value": {}, "ppo_value": {}, "reward": {"model": "r"}}}


def by_token(column, trained):
    return [row.tolist() for samples in trained for row in getattr(samples, column).rows()]


async def test_samples_get_reference_logprobs_and_values_of_their_own(buffer, run_id, tmp_path):
    trainer = TrainerGroup()
    trainer.logprobs = lambda role, samples: [-tokens.astype(np.float32) for tokens in samples.response_ids.rows()]
    trainer.values = lambda role, samples: [tokens / 2 for tokens in samples.response_ids.rows()]
    engine = Engine(prompts=questions, flow=digits_count)
    async with place(buffer.address, tmp_path, trainer=trainer, engine=engine, run=config(**PPO)) as there:
        state = await there.run(run_id)
    assert state.life is Life.SUCCEEDED, state.error
    tokens = by_token("response_ids", trainer.trained)
    assert by_token("reference_logprobs", trainer.trained) == [[-token for token in row] for row in tokens]
    assert by_token("values", trainer.trained) == [[token / 2 for token in row] for row in tokens]
    assert {role for method, role, _ in trainer.scored if method == "ComputeLogprobs"} == {"reference"}
    assert len({sample_id for samples in trainer.trained for sample_id in samples.sample_ids}) == 24


async def test_with_a_critic_no_step_begins_before_all_values_are_there(buffer, run_id, tmp_path):
    valued = []

    def measure(global_step, samples):
        valued.append(sum(len(samples) for method, _, samples in trainer.scored if method == "ComputeValues"))
        return {"loss": 0.0}

    async def slowly(context, prompts):
        async for group in digits_count(context, prompts):
            yield group
            await asyncio.sleep(0.2)  # time enough for a step on the group

    trainer, engine = TrainerGroup(measure), Engine(prompts=questions, flow=slowly)
    async with place(buffer.address, tmp_path, trainer=trainer, engine=engine, run=config(**PPO)) as there:
        assert (await there.run(run_id)).life is Life.SUCCEEDED
    assert valued == [8, 8, 16, 16, 24, 24]


@pytest.mark.parametrize("reproducible", [False, True])
async def test_groups_that_wait_for_a_model_are_asked_about_together_unless_that_could_change_the_answer(
    buffer, run_id, tmp_path, reproducible
):
    trainer, runtime = TrainerGroup(), {"sample_per_episode": 64, "num_episode": 1, "reproducible": reproducible}
    async with place(buffer.address, tmp_path, trainer=trainer, run=config(runtime, models={"reference": {}})) as there:
        assert (await there.run(run_id)).life is Life.SUCCEEDED
    sizes = [len(samples) for _, _, samples in trainer.scored]
    assert sum(sizes) == 64 and (len(sizes) == 16 if reproducible else len(sizes) < 16)


async def test_a_reward_model_alone_gives_the_rewards_and_a_score_that_is_no_number_fails(buffer, run_id, tmp_path):
    trainer = TrainerGroup()
    trainer.scores = lambda role, samples: [float(row[0]) if row[0] % 2 else np.nan for row in samples.response_ids.rows()]
    engine = Engine(prompts=questions)
    run = config(models={"reward": {"model": "r"}}, rewards={"model_weight": 0.5, "max_error_rate": 0.5})
    async with place(buffer.address, tmp_path, trainer=trainer, engine=engine, run=run) as there:
        assert (await there.run(run_id)).life is Life.SUCCEEDED
        (first, *_) = there.rows()
    for samples in trainer.trained:
        for row, reward, status in zip(samples.response_ids.rows(), samples.rewards, samples.reward_status, strict=True):
            assert status == (RewardStatus.VALUE if row[0] % 2 else RewardStatus.ERROR)
            assert reward == pytest.approx(row[0] / 2) or (np.isnan(reward) and row[0] % 2 == 0)
    assert first["reward_failed"] == 0.5
    assert first["reward/reward_model"] == pytest.approx(2 * first["reward_mean"])


@pytest.mark.parametrize("rewards", [[], [length]], ids=["alone", "beside a function"])
async def test_a_reward_model_whose_scores_are_no_numbers_ends_the_run_with_the_sample(rewards, buffer, run_id, tmp_path):
    trainer = TrainerGroup()
    trainer.scores = lambda role, samples: [np.nan] * len(samples)
    run = config(models={"reward": {"model": "r"}}, rewards={"max_error_rate": 0.25})
    engine = Engine(prompts=questions, rewards=rewards)
    async with place(buffer.address, tmp_path, trainer=trainer, engine=engine, run=run) as there:
        state = await there.run(run_id)
    assert state.life is Life.FAILED
    # a group that is within the budget may be in a step before the one that is beyond it is scored: it counts for nothing
    assert not any(samples.loss_mask.values.any() for samples in trainer.trained)
    assert re.search(r"models\.reward gave sample \S+ the score nan\n[35] of the episode's (8|16) rewards", state.error)
    assert "more than rewards.max_error_rate (0.25) allows" in state.error


async def test_a_flow_whose_rewards_are_no_numbers_ends_the_run(buffer, run_id, tmp_path):
    async def infinite(context, prompts):
        async for group in context.generate(prompts):
            yield group.with_rewards([np.inf] * len(group.texts))

    engine = Engine(prompts=questions, flow=infinite)
    async with place(buffer.address, tmp_path, engine=engine) as there:
        state = await there.run(run_id)
    assert state.life is Life.FAILED
    assert re.search(r"the flow gave sample \S+ a reward that is no finite number\n4 of the episode's 8 rew", state.error)


@pytest.mark.parametrize(("column", "role"), [("logprobs", "reference"), ("values", "ppo_value")])
async def test_a_model_that_says_no_number_of_a_token_ends_the_run_with_role_and_sample(
    column, role, buffer, run_id, tmp_path
):
    def broken(_, samples):
        rows = [np.full(size, -1.0) for size in samples.response_ids.lengths]
        rows[-1][-1] = np.nan
        return rows

    trainer = TrainerGroup()
    setattr(trainer, column, broken)
    async with place(buffer.address, tmp_path, trainer=trainer, run=config(**PPO)) as there:
        state = await there.run(run_id)
    assert (state.life, trainer.trained) == (Life.FAILED, [])
    assert re.search(rf"models\.{role} says nan of a token of sample \S+/3, which no step could learn from", state.error)


async def test_a_reward_model_adds_to_the_functions_and_lives_in_a_group_of_its_own(buffer, run_id, tmp_path):
    trainer, judges = TrainerGroup(), TrainerGroup()
    judges.scores = lambda role, samples: [10.0] * len(samples)
    engine = Engine(prompts=questions, rewards=[length])
    run = config(models={"reward": {"model": "r", "group": "judges"}}, runtime={"num_episode": 1})
    async with place(buffer.address, tmp_path, trainer=trainer, engine=engine, run=run, groups={"judges": judges}) as there:
        assert (await there.run(run_id)).life is Life.SUCCEEDED
        (row,) = there.rows()
    assert row["reward_mean"] == pytest.approx(row["reward/length"] + 10.0)
    assert (len(trainer.scored), len(judges.scored)) == (0, len(judges.scored)) and judges.scored


async def test_a_flow_may_ask_the_models_itself_and_is_not_asked_again_for_it(buffer, run_id, tmp_path):
    async def near_the_reference(context, prompts):
        groups = context.model_scores(context.values(context.reference_logprobs(context.generate(prompts))))
        async for group in groups:
            distance = [-float(row.sum()) for row in group.samples.reference_logprobs.rows()]
            yield group.with_rewards(list(group.scores["reward_model"] - distance))

    trainer = TrainerGroup()
    engine = Engine(prompts=questions, flow=near_the_reference)
    async with place(buffer.address, tmp_path, trainer=trainer, engine=engine, run=config(**ALL_SIX)) as there:
        state = await there.run(run_id)
    assert state.life is Life.SUCCEEDED, state.error
    asked = [sum(len(samples) for method, _, samples in trainer.scored if method == name) for name in
             ("ComputeLogprobs", "ComputeValues", "ComputeScores")]  # fmt: skip
    assert asked == [24, 24, 24]
    expected = [1.0 - size for samples in trainer.trained for size in samples.response_ids.lengths]
    assert [reward for samples in trainer.trained for reward in samples.rewards] == expected


async def test_a_flow_that_asks_for_a_role_that_the_run_lacks_is_told_which(buffer, run_id, tmp_path):
    async def with_values(context, prompts):
        async for group in context.values(context.generate(prompts)):
            yield group.with_rewards([1.0] * len(group.texts))

    engine = Engine(prompts=questions, flow=with_values)
    async with place(buffer.address, tmp_path, engine=engine, trainer=TrainerGroup()) as there:
        state = await there.run(run_id)
    assert "models.ppo_value: is missing, but the flow asks for it" in state.error


async def test_a_model_that_fails_is_named_with_its_group(buffer, run_id, tmp_path):
    def broken(role, samples):
        raise ServiceFaultError("out of memory")

    judges = TrainerGroup()
    judges.logprobs = broken
    run = config(models={"reference": {"group": "judges"}})
    async with place(buffer.address, tmp_path, trainer=TrainerGroup(), run=run, groups={"judges": judges}) as there:
        state = await there.run(run_id)
    assert state.life is Life.FAILED
    assert "trainer group judges at 127.0.0.1:" in state.error and "out of memory" in state.error


async def test_a_model_that_takes_too_long_fails_the_run_by_the_deadline(buffer, run_id, tmp_path):
    class Slow(TrainerGroup):
        async def ComputeLogprobs(self, requests, context):
            await asyncio.sleep(60)
            yield

    run = config(models={"reference": {}}, deadlines={"score_s": 0.5})
    async with place(buffer.address, tmp_path, trainer=Slow(), run=run) as there:
        state = await there.run(run_id)
    assert "trainer at" in state.error and "raise deadlines.score_s if it is only slow" in state.error


def relay_sample_fn(episode_relay_buffers):
    buffers = []
    for relay_buffer in episode_relay_buffers:
        buffers += relay_buffer.buffer
    return buffers


async def test_the_page_s_engine_trains_by_ppo_on_what_its_relay_function_chooses(buffer, run_id, tmp_path):
    engine = RLHFEngine(*map(Model, SIX), prompts=questions)
    engine.set_relay_sample_fn(relay_sample_fn)
    trainer = TrainerGroup()
    run = config({"max_relay_episode": 2}, **ALL_SIX)
    async with place(buffer.address, tmp_path, engine=engine, trainer=trainer, run=run) as there:
        state = await there.run(run_id)
        rows = there.rows()
    assert state.life is Life.SUCCEEDED, state.error
    assert [row["relay/samples"] for row in rows] == [8, 16, 16]
    assert all(samples.values is not None and samples.reference_logprobs is not None for samples in trainer.trained)


ENGINES = [
    (RLHFEngine, SIX, "ppo"),
    (GRPOEngine, ("policy", "reference", "reward", "ppo_policy"), "grpo"),
    (OnlineDPOEngine, ("policy", "reference", "reward", "ppo_policy"), "online_dpo"),
    (DPOEngine, ("reference", "ppo_policy"), "dpo"),
]


@pytest.mark.parametrize(("kind", "roles", "algorithm"), ENGINES)
def test_an_engine_is_of_one_algorithm_and_of_the_models_that_it_names(kind, roles, algorithm):
    engine = kind(*map(Model, roles), prompts=questions)
    sections = {role: {"model": "r"} if role == "reward" else {} for role in roles}
    engine.require_agrees(config(algorithm={"name": algorithm}, models=sections))
    with pytest.raises(ConfigError, match=rf"algorithm.name: is 'sft', but the app's engine is {kind.__name__}"):
        engine.require_agrees(config(algorithm={"name": "sft"}, models=sections))
    with pytest.raises(ConfigError, match=r"models.reference: is missing"):
        engine.require_agrees(config(algorithm={"name": algorithm}))
    with pytest.raises(ConfigError, match=rf"got Model\(name='value'\) as the {roles[-1]}"):
        kind(*map(Model, roles[:-1]), Model("value"))
