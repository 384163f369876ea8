"""Evaluations of runs with a rollout: held-out prompts, sampled by the eval_ options, scored as the run scores."""

import pytest
from harness import config, digits_count, place
from reward_functions import length

from baton.engine import Engine
from baton.errors import ConfigError
from baton.testing import FakeRollout, FakeTrainer
from services.coordinator.state import Life


class Recording(FakeRollout):
    """Remembers what it was asked, by prompt."""

    def __init__(self):
        super().__init__(lambda prompt, index, version: "7" * version)
        self.asked = []

    async def Generate(self, request, context):
        self.asked.append(request)
        async for answer in super().Generate(request, context):
            yield answer


async def test_held_out_prompts_are_answered_once_each_by_the_eval_options_and_never_trained(buffer, run_id, tmp_path):
    rollout, trainer = Recording(), FakeTrainer()
    engine = Engine(prompts=[{"prompt": f"question {i}"} for i in range(6)], rewards=[length])
    run = config(
        {"eval_episode_interval": 2, "num_episode": 4}, prompts={"source": "app", "holdout": 2},
        models={"policy": {"temperature": 0.9, "eval_temperature": 0.0, "eval_top_k": 5}},
    )  # fmt: skip
    async with place(buffer.address, tmp_path, trainer=trainer, rollouts=(rollout,), engine=engine, run=run) as there:
        state = await there.run(run_id)
        evaluations, rows = there.rows("evaluations.jsonl"), there.rows()
    assert state.life is Life.SUCCEEDED, state.error
    assert [(row["finished_episodes"], row["global_step"], row["reward"]) for row in evaluations] == [
        (0, 0, 1.0), (2, 4, 3.0), (4, 8, 5.0),
    ]  # fmt: skip  - the response is as long as the version, which grows with each episode
    assert evaluations[0]["reward/length"] == evaluations[0]["response_length"] == 1.0
    assert ["eval/reward" in row for row in rows] == [False, True, False, True]
    of_evaluations = [request for request in rollout.asked if request.prompts[0].group_id.startswith("eval-")]
    assert {prompt.group_id for request in of_evaluations for prompt in request.prompts} == {"eval-p4", "eval-p5"}
    options = [(request.sampling.temperature, request.sampling.top_k, request.sampling.n) for request in of_evaluations]
    assert set(options) == {(0, 5, 1)}
    others = [request for request in rollout.asked if request not in of_evaluations]
    assert not any(request.sampling.HasField("temperature") for request in others)
    trained = {group for samples in trainer.trained for group in samples.group_ids}
    assert trained == {f"e{at // 2}-p{at}" for at in range(8)}
    prompts = {bytes(row.tolist()).decode() for samples in trainer.trained for row in samples.prompt_ids.rows()}
    assert prompts == {f"question {i}" for i in range(4)}


async def test_an_evaluation_without_anything_that_scores_is_refused_at_the_start(buffer, run_id, tmp_path):
    engine = Engine(prompts=[{"prompt": f"question {i}"} for i in range(6)], flow=digits_count)
    run = config({"eval_episode_interval": 2}, prompts={"source": "app", "holdout": 2})
    with pytest.raises(ConfigError, match=r"runtime.eval_episode_interval: .*reward"):
        async with place(buffer.address, tmp_path, engine=engine, run=run):
            pass


async def test_an_evaluation_by_a_beam_search_takes_the_best_of_as_wide_a_beam_as_the_run_has(buffer, run_id, tmp_path):
    rollout = Recording()
    rollout.respond = lambda prompt, index, version: "7" * (index + 1)  # the best is the shortest
    engine = Engine(prompts=[{"prompt": f"question {i}"} for i in range(4)], rewards=[length])
    run = config(
        {"eval_episode_interval": 1, "num_episode": 1, "stream_data_loader_type": "dynamic"},
        prompts={"source": "app", "holdout": 2},
        models={"policy": {"use_beam_search": True, "n": 3}},
    )  # fmt: skip
    async with place(buffer.address, tmp_path, rollouts=(rollout,), engine=engine, run=run) as there:
        state = await there.run(run_id)
        evaluations = there.rows("evaluations.jsonl")
    assert state.life is Life.SUCCEEDED, state.error
    of_evaluations = [request for request in rollout.asked if request.prompts[0].group_id.startswith("eval-")]
    assert {request.sampling.n for request in of_evaluations} == {3}
    assert [row["reward"] for row in evaluations] == [1.0, 1.0]
