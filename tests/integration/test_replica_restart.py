"""Every real part, two replicas, and one of them killed in the middle of an episode, or of a weight update."""

import asyncio
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from cli_process import Place

from baton.api.coordinator.v1 import coordinator_pb2 as pb
from baton.clients import CoordinatorClient, LedgerClient, RolloutClient
from models import make_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

EPISODES, PROMPTS, GROUP, WAITS = 5, 8, 4, 3
APP = f"""
import asyncio
from pathlib import Path
from baton.engine import Engine

async def flow(context, prompts):
    while context.episode_id == {WAITS} and not Path("go").exists():
        await asyncio.sleep(0.1)
    async for group in context.generate(prompts):
        with Path("answered").open("a") as file:
            file.writelines(f"{{name}}\\n" for name in group.samples.sample_ids)
        Path(f"within-{{context.episode_id}}").touch()
        yield group.with_rewards([float(len(set(text.split()))) for text in group.texts])

engine = Engine(prompts=[{{"prompt": f"w{{i}} w{{i + 1}} w{{i + 2}}"}} for i in range(16)], flow=flow)
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    model = make_model(tmp_path / "model", layers=2)
    run = {
        "runtime": {
            "num_episode": EPISODES, "sample_per_episode": PROMPTS * GROUP, "num_inference_per_prompt": GROUP,
            "train_micro_batch_size": 8, "train_global_batch_size": PROMPTS * GROUP,
        },
        "models": {
            "policy": {"model": str(model), "seq_length": 256, "max_new_tokens": 240, "ignore_eos": True,
                       "max_num_seqs": GROUP, "enforce_eager": True, "dtype": "float32", "num_replica": 2},
            "ppo_policy": {"lr": 1e-3, "dtype": "float32"},
        },
    }  # fmt: skip
    there = Place(tmp_path, yaml.safe_dump(run), stand_ins=False)
    (tmp_path / "my_program.py").write_text(APP)
    yield there
    there.baton("down")
    assert there.kill_all() == {}


def record(place: Place) -> dict:
    return json.loads((place.runs / "a" / "deployment.json").read_text())


async def until(condition, timeout_s: float, what: str) -> float:
    """Seconds until `condition()`, a coroutine, is true; fails the test with `what` after `timeout_s`."""
    begun = time.monotonic()
    while not await condition():
        assert time.monotonic() - begun < timeout_s, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.02)
    return time.monotonic() - begun


class Run:
    """A run on a deployment in the background, and what a test asks of its services."""

    def __init__(self, place: Place, coordinator: CoordinatorClient, http: httpx.AsyncClient, victim: str) -> None:
        self.place, self.coordinator, self.http, self.victim = place, coordinator, http, victim

    async def within_an_episode(self) -> bool:
        return (self.place.directory / "within-1").exists()

    async def within_an_update(self) -> bool:
        status = await self.coordinator.get_run()
        return (status.episode, status.phase) == (1, "publish")

    async def is_healthy_again(self) -> bool:
        seen = {one["address"]: one for one in (await self.http.get("/status")).json()["replicas"]}[self.victim]
        return seen["state"] == "healthy" and seen["deaths"] == 1

    async def has_ended(self) -> bool:
        return (await self.coordinator.get_run()).state not in (pb.RUN_STATE_STARTING, pb.RUN_STATE_RUNNING)

    def kill(self) -> None:
        """kill -9 of the service itself, below its keeper."""
        pid = json.loads((self.place.runs / "a" / "ready" / "rollout-1.json").read_text())["pid"]
        os.kill(pid, signal.SIGKILL)

    def told(self) -> list[str]:
        """What the coordinator's log says of the victim."""
        log = (self.place.runs / "a" / "logs" / "coordinator.log").read_text()
        return re.findall(rf"rollout at {self.victim}:? (died: .*|its \d+ unanswered groups .*|is back .*|serves .*)", log)


LINES = {
    "within_an_episode": ["died: ", "its [1-4] unanswered groups go elsewhere"],
    "within_an_update": ["died: "],
}


@pytest.mark.parametrize("moment", LINES)
async def test_a_killed_replica_costs_nothing_and_serves_a_later_version(place: Place, moment: str) -> None:
    up = place.start("up", "run.yaml", "--run-id", "a", "--app", "my_program:engine")
    out, err = await asyncio.to_thread(up.communicate, timeout=240)
    assert up.returncode == 0, out + err
    services = record(place)["services"]
    victim = services["rollout-1"]["address"]
    async with (
        CoordinatorClient(services["coordinator"]["address"]) as coordinator, RolloutClient(victim) as replica,
        LedgerClient(services["buffer"]["address"]) as ledger,
        httpx.AsyncClient(base_url=record(place)["dashboard_url"]) as http,
    ):  # fmt: skip
        run = Run(place, coordinator, http, victim)
        await coordinator.start_run("a")
        await until(getattr(run, moment), 120, moment)
        run.kill()
        back_s = await until(run.is_healthy_again, 150, "the replica serves again")
        (place.directory / "go").touch()
        await until(run.has_ended, 90, "the run ends")
        state = await coordinator.get_run()
        assert state.state == pb.RUN_STATE_SUCCEEDED, state.error
        assert list((await ledger.audit("a")).faults) == []
        served = await replica.get_status()
    assert served.policy_version == EPISODES + 1 and served.generated_tokens > 0
    answered = Counter((place.directory / "answered").read_text().split())
    assert set(answered.values()) == {1}
    assert len(answered) == EPISODES * PROMPTS * GROUP
    lines = run.told()
    print("\n".join([*lines, f"back after {back_s:.1f} s"]))
    expected = [*LINES[moment], "is back with version 0, stale", "serves version [3-5]"]
    assert len(lines) == len(expected), lines
    for line, told in zip(lines, expected, strict=True):
        assert re.match(told, line), lines
