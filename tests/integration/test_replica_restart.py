"""Every real part, two replicas, and one of them killed in the middle of an episode, or of a weight update."""

import asyncio
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from cli_process import Place

from baton.api.coordinator.v1 import coordinator_pb2 as pb
from baton.clients import CoordinatorClient, LedgerClient, RolloutClient
from baton.local.process_tree import descendants
from models import make_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

Condition = Callable[[], Awaitable[bool]]
EPISODES, PROMPTS, GROUP = 5, 8, 4
HOLDS = "begin-1", "end-1", "begin-3"
"""Files at which the flow waits while they are there, before or after an episode's rollout: what a test waits for cannot
pass unseen on a busy machine."""
APP = """
import asyncio
from pathlib import Path
from baton.engine import Engine

async def hold(name):
    while Path(name).exists():
        await asyncio.sleep(0.05)

async def flow(context, prompts):
    await hold(f"begin-{context.episode_id}")
    async for group in context.generate(prompts):
        with Path("answered").open("a") as file:
            file.writelines(f"{name}\\n" for name in group.samples.sample_ids)
        yield group.with_rewards([float(len(set(text.split()))) for text in group.texts])
    await hold(f"end-{context.episode_id}")

engine = Engine(prompts=[{"prompt": f"w{i} w{i + 1} w{i + 2}"} for i in range(16)], flow=flow)
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
    for name in HOLDS:
        (tmp_path / name).touch()
    yield there
    there.baton("down")
    assert there.kill_all() == {}


def record(place: Place) -> dict:
    return json.loads((place.runs / "a" / "deployment.json").read_text())


def log_end(log: Path, lines: int = 30) -> str:
    """The last lines of a log, under its name."""
    text = log.read_text(errors="replace") if log.exists() else "(there is none)"
    return "\n".join([f"--- {log.name}:", *text.splitlines()[-lines:]])


class Run:
    """A run on a deployment in the background, and what a test asks of its services."""

    def __init__(self, place: Place, coordinator: CoordinatorClient, http: httpx.AsyncClient, victim: str) -> None:
        self.place, self.coordinator, self.http, self.victim = place, coordinator, http, victim
        self.victim_pid = 0
        self.last_seen: dict = {}

    async def within_an_episode(self) -> None:
        """Returns while the victim has groups to answer; its engine stands still, so that it cannot answer them before."""
        await self.until(self.waits_at(1, "generate"), 200, "episode 1 begins")
        self.freeze()
        self.release("begin-1", "end-1")
        await self.until(self.has_work, 200, "the victim has groups to answer")

    async def within_an_update(self) -> None:
        """Returns while weights are on their way to the victim, whose engine stands still."""
        self.release("begin-1")
        await self.until(self.has_answered(2), 200, "episode 1 is rolled out")
        self.freeze()
        self.release("end-1")
        await self.until(self.waits_at(1, "publish"), 200, "the update after episode 1 begins")

    async def until(self, condition: Condition, timeout_s: float, what: str) -> float:
        """Seconds until `condition()`, a coroutine, is true; fails the test with `what`, and what the run says, after
        `timeout_s`."""
        begun = time.monotonic()
        while not await self.holds(condition):
            assert time.monotonic() - begun < timeout_s, f"not within {timeout_s} s: {what}\n{await self.report()}"
            await asyncio.sleep(0.02)
        return time.monotonic() - begun

    async def holds(self, condition: Condition) -> bool:
        """Whether `condition()`; not while the coordinator does not answer, as on a machine whose disk is busy."""
        try:
            return await condition()
        except (httpx.TimeoutException, httpx.RemoteProtocolError):  # or a kept connection that was closed meanwhile
            return False

    async def report(self) -> str:
        """What the coordinator says of the victim, and the ends of the logs."""
        try:
            await self.seen()
        except httpx.HTTPError as error:  # what was seen before is told
            unseen = f" before {error!r}"
            os.kill(record(self.place)["services"]["coordinator"]["pid"], signal.SIGUSR1)  # its log tells what it does
            await asyncio.sleep(1)
        else:
            unseen = ""
        last = ", ".join(f"{name} {self.last_seen.get(name)!r}" for name in ("state", "reason", "deaths"))
        logs = (self.place.runs / "a" / "logs" / f"{name}.log" for name in ("coordinator", "supervisor", "rollout-1"))
        return "\n".join([f"the victim was last seen{unseen} as: {last}", *(log_end(log) for log in logs)])

    def waits_at(self, episode: int, phase: str) -> Condition:
        async def reached() -> bool:
            status = await self.coordinator.get_run()
            return (status.episode, status.phase) == (episode, phase)

        return reached

    def has_answered(self, episodes: int) -> Condition:
        async def reached() -> bool:
            return len(self.answered()) == episodes * PROMPTS * GROUP

        return reached

    async def seen(self) -> dict:
        """The victim, as the coordinator sees it; fails the test if the run has failed."""
        status = (await self.http.get("/status")).json()
        assert not status["error"]
        self.last_seen = {one["address"]: one for one in status["replicas"]}[self.victim]
        return self.last_seen

    async def has_work(self) -> bool:
        return (await self.seen())["outstanding_prompts"] > 0

    async def is_healthy_again(self) -> bool:
        seen = await self.seen()
        return seen["state"] == "healthy" and seen["deaths"] >= 1

    async def has_ended(self) -> bool:
        return (await self.coordinator.get_run()).state not in (pb.RUN_STATE_STARTING, pb.RUN_STATE_RUNNING)

    def answered(self) -> list[str]:
        """Ids of the samples that the flow got, in order."""
        file = self.place.directory / "answered"
        return file.read_text().split() if file.exists() else []

    def release(self, *holds: str) -> None:
        """Has the flow go on."""
        for name in holds:
            (self.place.directory / name).unlink()

    def freeze(self) -> None:
        """Has the victim's engine stand still; its service goes on answering."""
        self.victim_pid = json.loads((self.place.runs / "a" / "ready" / "rollout-1.json").read_text())["pid"]
        for pid in descendants(self.victim_pid):
            os.kill(pid, signal.SIGSTOP)

    def kill(self) -> None:
        """kill -9 of the service itself, below its keeper; its engine ends with it."""
        os.kill(self.victim_pid, signal.SIGKILL)

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
    out, err = await asyncio.to_thread(up.communicate, timeout=800)
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
        await getattr(run, moment)()
        run.kill()
        back_s = await run.until(run.is_healthy_again, 500, "the replica serves again")
        run.release("begin-3")
        await run.until(run.has_ended, 200, "the run ends")
        state = await coordinator.get_run()
        assert state.state == pb.RUN_STATE_SUCCEEDED, state.error
        assert list((await ledger.audit("a")).faults) == []
        served = await replica.get_status()
    assert served.policy_version == EPISODES + 1 and served.generated_tokens > 0
    answered = Counter(run.answered())
    assert set(answered.values()) == {1}
    assert len(answered) == EPISODES * PROMPTS * GROUP
    lines = run.told()
    print("\n".join([*lines, f"back after {back_s:.1f} s"]))
    first, last = LINES[moment], ["is back with version 0, stale", "serves version [3-5]"]
    assert len(lines) >= len(first) + len(last), lines
    for line, told in [*zip(lines, first, strict=False), *zip(lines[-2:], last, strict=True)]:  # a start may have failed
        assert re.match(told, line), lines
