"""`baton run` with the real store, buffer and coordinator, and the user's program; what holds models is a fake."""

import asyncio
import json
import re

import pytest
from cli_process import Place

from baton.testing import FakeRollout, FakeTrainer, serve

RUN_FILE = """
models: {policy: {}}
runtime:
  num_episode: 3
  sample_per_episode: 8
  num_inference_per_prompt: 4
  train_micro_batch_size: 2
  train_global_batch_size: 4
"""
APP = """
from baton.engine import Engine

engine = Engine(prompts=[{"prompt": f"question {i}"} for i in range(3)], rewards=["digits_only"])
"""


@pytest.fixture
def place(tmp_path):
    there = Place(tmp_path, RUN_FILE, stand_ins=False)
    (tmp_path / "my_program.py").write_text(APP)
    yield there
    assert there.kill_all() == {}


async def test_a_run_trains_and_writes_its_files(place):
    async with serve(FakeTrainer()) as trainer, serve(FakeRollout()) as rollout:
        external = [
            "--set", f"services.trainer_address='{trainer.address}'",
            "--set", f"services.rollout_addresses=['{rollout.address}']",
        ]  # fmt: skip
        run = ["run", "run.yaml", "--run-id", "a", "--app", "my_program:engine", *external]
        done = await asyncio.to_thread(place.baton, *run)
    assert done.returncode == 0, done.stderr + done.stdout
    assert f"trainer is ready at {trainer.address}" in done.stdout
    assert re.search(r"^episode 2 done \(3 of 3\): reward \d+\.\d+, loss .*, length .*, seconds .*train", done.stdout, re.M)
    assert re.search(r"^mean reward: \S+ over the first two episodes, \S+ over the last two$", done.stdout, re.M)
    written = {line.split("/")[-1] for line in done.stdout.splitlines() if line.startswith("wrote ")}
    assert {"summary.json", "metrics.jsonl", "reward.png"} <= written
    assert json.loads((place.runs / "a" / "summary.json").read_text())["episodes"] == 3
