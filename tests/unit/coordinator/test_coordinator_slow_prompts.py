"""Prompts that take long to make: the coordinator goes on meanwhile, and none is made that nobody waits for."""

import asyncio
import time
from collections.abc import Mapping

from harness import config, digits_count, place, until
from reward_functions import length

from baton.engine import Engine
from baton.testing import FakeTrainer
from services.coordinator.resuming import Resume
from services.coordinator.state import Life

EACH_S = 1.5


class Slow(Mapping):
    """A prompt's record that takes `EACH_S` to read, and tells `made`."""

    def __init__(self, text, made):
        self.text = text
        self.made = made

    def __getitem__(self, key):
        return {"prompt": self.text}[key]

    def __iter__(self):
        time.sleep(EACH_S)
        self.made.append(self.text)
        return iter(["prompt"])

    def __len__(self):
        return 1


def slow(count, made):
    return [Slow(f"question {i}", made) for i in range(count)]


class Heart:
    """Beats in the event loop; `longest_s` is the longest that it stood still."""

    def __init__(self):
        self.longest_s = 0.0

    async def beat(self):
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            self.longest_s = max(self.longest_s, time.monotonic() - before)

    async def __aenter__(self):
        self.task = asyncio.create_task(self.beat())
        return self

    async def __aexit__(self, *_):
        self.task.cancel()


async def test_the_event_loop_goes_on_while_prompts_are_made(buffer, run_id, tmp_path):
    made, runtime = [], {"num_episode": 1, "sample_per_episode": 16}
    engine = Engine(prompts=slow(4, made), flow=digits_count)
    async with place(buffer.address, tmp_path, engine=engine, run=config(runtime)) as there, Heart() as heart:
        state = await there.run(run_id)
    assert state.life is Life.SUCCEEDED, state.error
    assert len(made) == 4
    assert heart.longest_s < 2 * EACH_S


async def test_a_stop_ends_the_making_of_prompts_and_a_run_goes_on_from_its_checkpoint(buffer, run_id, tmp_path):
    made, trainer, runtime = [], FakeTrainer(), {"num_episode": 1, "sample_per_episode": 160}
    engine = Engine(prompts=slow(40, made), flow=digits_count)
    async with place(buffer.address, tmp_path, engine=engine, trainer=trainer, run=config(runtime)) as there:
        there.coordinator.start_run(run_id)
        await there.until("prompts")
        await until(lambda: made)
        there.coordinator.stop_run(run_id, save_checkpoint=True)
        state = (await there.finish(10))[-1].state
    assert (state.life, state.prompts_consumed, trainer.checkpoints) == (Life.STOPPED, 0, [state.checkpoint])
    await asyncio.sleep(EACH_S)
    before = len(made)
    await asyncio.sleep(3 * EACH_S)
    assert len(made) == before < 40, "the thread goes on, and the process would wait for it at its end"
    engine = Engine(prompts=[{"prompt": f"question {i}"} for i in range(40)], flow=digits_count)
    async with place(buffer.address, tmp_path, engine=engine, trainer=trainer, run=config({"num_episode": 1})) as there:
        there.coordinator.start_run(run_id, Resume())
        state = (await there.finish())[-1].state
    assert state.life is Life.SUCCEEDED, state.error
    assert [samples.group_ids[0] for samples in trainer.trained] == ["e0-p0", "e0-p1"]


async def test_held_out_prompts_are_made_once_for_all_evaluations_and_the_event_loop_goes_on(buffer, run_id, tmp_path):
    made = []
    rows = [{"prompt": f"question {i}"} for i in range(2)] + slow(4, made)
    run = config({"num_episode": 2, "eval_episode_interval": 1}, prompts={"source": "app", "holdout": 4})
    engine = Engine(prompts=rows, rewards=[length])
    async with place(buffer.address, tmp_path, engine=engine, run=run) as there, Heart() as heart:
        state = await there.run(run_id)
        assert len(there.rows("evaluations.jsonl")) == 3
    assert state.life is Life.SUCCEEDED, state.error
    assert made == [f"question {i}" for i in range(4)]
    assert heart.longest_s < 2 * EACH_S
