"""Runs on given answers: pairs and completions become samples without any rollout, and held-out ones are evaluated."""

import json
import math

import numpy as np
import pytest
from harness import TrainerGroup, config, digits_count, place

from baton.config.algorithm import RewardModelConfig
from baton.engine import DPOEngine, Engine, Model
from baton.errors import ConfigError
from services.coordinator.evaluation import score_metrics
from services.coordinator.state import Life

PAIRS = [{"prompt": f"question {i}", "good": "yes" * (i + 1), "bad": "no", "topic": i} for i in range(10)]
KEYS = {"chosen_key": "good", "rejected_key": "bad"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def dpo(path, *, policy=None, **runtime):
    """Three episodes of four pairs, two steps of two."""
    prompts = {"source": "jsonl", "path": path, "holdout": 4, **KEYS}
    return config(
        {"num_inference_per_prompt": 1, "eval_episode_interval": 3, **runtime},
        algorithm={"name": "dpo"}, models={"policy": policy or {}, "reference": {}}, prompts=prompts,
    )  # fmt: skip


def texts(column):
    return [bytes(row.astype(np.uint8)).decode() for row in column.rows()]


async def test_pairs_of_a_file_are_trained_chosen_first_with_reference_logprobs(buffer, run_id, tmp_path):
    trainer = TrainerGroup()
    engine = DPOEngine(Model("reference"), Model("ppo_policy"))
    run = dpo(write(tmp_path / "pairs.jsonl", PAIRS))
    async with place(buffer.address, tmp_path, trainer=trainer, engine=engine, run=run) as there:
        state = await there.run(run_id)
        row = there.rows()[0]
    assert (state.life, state.global_step, state.policy_version) == (Life.SUCCEEDED, 6, 0), state.error
    first = trainer.trained[0]
    assert texts(first.prompt_ids) == ["question 0"] * 2 + ["question 1"] * 2
    assert texts(first.response_ids) == ["yes", "no", "yesyes", "no"]
    assert (first.rewards.tolist(), first.group_ids) == ([1, 0, 1, 0], ["e0-p0"] * 2 + ["e0-p1"] * 2)
    assert [json.loads(text)["topic"] for text in first.metadata] == [0, 0, 1, 1]
    assert first.policy_version_max.tolist() == [0] * 4
    prompts = [text for samples in trainer.trained for text in texts(samples.prompt_ids)[::2]]
    assert prompts == [f"question {at % 6}" for at in range(12)]  # the last four of ten are held out
    assert all(samples.reference_logprobs is not None for samples in trainer.trained)
    assert "reward_mean" not in row and "sample_age_max" not in row and row["response_tokens"] > 0
    assert (tmp_path / "loss.png").exists() and not (tmp_path / "reward.png").exists()


async def test_samples_that_were_consumed_before_are_two_for_each_pair(buffer, run_id, tmp_path):
    trainer = TrainerGroup()
    run = dpo(write(tmp_path / "pairs.jsonl", PAIRS), consumed_samples=4, num_episode=1)
    async with place(buffer.address, tmp_path, trainer=trainer, run=run, engine=Engine()) as there:
        assert (await there.run(run_id)).life is Life.SUCCEEDED
    assert texts(trainer.trained[0].prompt_ids)[::2] == ["question 2", "question 3"]


@pytest.mark.parametrize("own", [{"flow": digits_count}, {"rewards": ["digits_only"]}])
async def test_an_engine_whose_flow_or_rewards_nobody_would_ask_is_refused(buffer, tmp_path, own):
    (name,) = own
    with pytest.raises(ConfigError, match=f"the app's Engine has {name}, but dpo learns from given answers"):
        async with place(buffer.address, tmp_path, run=dpo("pairs.jsonl"), engine=Engine(**own)):
            pass


async def test_a_later_pass_keeps_pairs_together(buffer, run_id, tmp_path):
    trainer = TrainerGroup()
    run = dpo(write(tmp_path / "pairs.jsonl", PAIRS), num_training_epoch=3, num_episode=1, sample_per_episode=12)
    async with place(buffer.address, tmp_path, trainer=trainer, run=run, engine=Engine()) as there:
        assert (await there.run(run_id)).life is Life.SUCCEEDED
    order = [sample_id for samples in trainer.trained for sample_id in samples.sample_ids]
    assert order[0::2] != sorted(order[0::2])
    assert [name.removesuffix("/0") + "/1" for name in order[0::2]] == order[1::2]


async def test_held_out_pairs_are_evaluated_before_and_after_by_loss_accuracy_and_margin(buffer, run_id, tmp_path):
    trainer = TrainerGroup()

    def logprobs(role, samples):
        """The policy is the reference at first; each step makes a token of a long answer likelier by 0.01."""
        learned = 0.0 if role == "reference" else 0.01 * trainer.global_step
        return [np.full(size, -1 + learned * (size > 2)) for size in samples.response_ids.lengths]

    trainer.logprobs = logprobs
    run = dpo(write(tmp_path / "pairs.jsonl", PAIRS))
    async with place(buffer.address, tmp_path, trainer=trainer, run=run, engine=Engine()) as there:
        assert (await there.run(run_id)).life is Life.SUCCEEDED
        before, after = there.rows("evaluations.jsonl")
        last = there.rows()[-1]
    start = {"global_step": 0, "finished_episodes": 0, "loss": math.log(2), "accuracy": 0, "margin": 0}
    assert before == pytest.approx(start)
    margins = [0.1 * 0.06 * 3 * (number + 1) for number in range(6, 10)]  # beta x gain x tokens
    loss = sum(math.log1p(math.exp(-margin)) for margin in margins) / 4
    expected = {"loss": loss, "accuracy": 1.0, "margin": sum(margins) / 4}
    assert after == pytest.approx({"global_step": 6, "finished_episodes": 3, **expected}, rel=1e-5)
    assert {name: last[f"eval/{name}"] for name in expected} == pytest.approx(expected, rel=1e-5)


async def test_an_answer_that_is_longer_than_the_limit_is_refused_by_name(buffer, run_id, tmp_path):
    run = dpo(write(tmp_path / "pairs.jsonl", PAIRS), policy={"seq_length": 30})  # "question 6", and "yes" seven times
    async with place(buffer.address, tmp_path, trainer=TrainerGroup(), run=run, engine=Engine()) as there:
        state = await there.run(run_id)
    assert state.life is Life.FAILED
    assert "prompt and answer eval-p6/0 have 31 tokens, more than models.policy.seq_length (30)" in state.error


def test_the_loss_of_an_evaluated_reward_model_is_that_of_its_training():
    config = RewardModelConfig(name="reward_model", center_coef=0.5)
    found = score_metrics(np.array([2.0, 1.0, 0.0, 3.0], np.float32), config)
    loss = (math.log1p(math.exp(-1)) + math.log1p(math.exp(3)) + 0.5 * 2 * 3**2) / 2
    assert found == pytest.approx({"loss": loss, "accuracy": 0.5, "margin": -1.0})


async def test_sft_learns_completions_of_an_app_and_of_a_task(buffer, run_id, tmp_path):
    sources = {
        "app": (Engine(prompts=[{"prompt": f"q{i}", "completion": str(i)} for i in range(4)]), {"source": "app"}),
        "task": (Engine(), {"source": "reasoning_gym", "task": "chain_sum", "size": 4, "seed": 1}),
    }
    for name, (engine, prompts) in sources.items():
        trainer = TrainerGroup()
        run = config({"num_inference_per_prompt": 1, "num_episode": 1}, algorithm={"name": "sft"}, prompts=prompts)
        async with place(buffer.address, tmp_path / name, trainer=trainer, run=run, engine=engine) as there:
            state = await there.run(f"{run_id}-{name}")
        assert state.life is Life.SUCCEEDED, state.error
        answers = [text for samples in trainer.trained for text in texts(samples.response_ids)]
        assert len(answers) == 8 and answers[:4] == answers[4:]
        assert answers[:4] == ["0", "1", "2", "3"] if name == "app" else all(text.lstrip("-").isdigit() for text in answers)
        assert all((samples.loss_mask.values == 1).all() for samples in trainer.trained)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "good": "a"}, "record 10, from 0, has 'None' as 'bad'; dpo needs a text there; .*good, prompt"),
        ({"prompt": "q", "good": "a", "bad": 3}, "record 10, from 0, has '3' as 'bad'"),
    ],
)
async def test_a_record_without_its_answers_fails_the_run_before_anything_is_trained(buffer, run_id, tmp_path, row, message):
    run = dpo(write(tmp_path / "pairs.jsonl", [*PAIRS, row]))
    async with place(buffer.address, tmp_path, trainer=TrainerGroup(), run=run, engine=Engine()) as there:
        state = await there.run(run_id)
    with pytest.raises(ConfigError, match=message):
        raise ConfigError(state.error)
    assert state.global_step == 0


async def test_more_held_out_records_than_there_are_is_an_error(buffer, run_id, tmp_path):
    run = dpo(write(tmp_path / "pairs.jsonl", PAIRS[:4]))
    async with place(buffer.address, tmp_path, trainer=TrainerGroup(), run=run, engine=Engine()) as there:
        state = await there.run(run_id)
    assert "prompts.holdout: got 4; the source has 4 prompts, and one at least must be left" in state.error
