"""The coordinator as a process: its gRPC and HTTP faces, an app with rewards of its own, signals, and deaths around it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import groupby
from pathlib import Path

import httpx
import pytest

from baton.api.coordinator.v1 import coordinator_pb2 as pb
from baton.clients import CoordinatorClient
from baton.errors import ConflictError, NotFoundError
from baton.testing import FakeRollout, FakeTrainer, serve
from processes import Process, ServiceProcess, free_port

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
import time
from baton.engine import Engine, reward

@reward(weight=0.5, timeout_s=30)
def is_digit(prompt, response, metadata):
    return float(response.isdigit() and prompt == metadata["same"])

@reward(timeout_s=60)
def hangs(prompt, response, metadata):
    while True:
        time.sleep(0.01)

PROMPTS = [{"prompt": f"question {i}", "same": f"question {i}"} for i in range(3)]
engine = Engine(prompts=PROMPTS, rewards=[is_digit, "digits_only"])
hanging = Engine(prompts=PROMPTS, rewards=[hangs])
"""


class Coordinator(ServiceProcess):
    """The process, started in a folder with an app."""

    def __init__(self, folder: Path, buffer: str, trainer: str, rollout: str, app: str) -> None:
        (folder / "run.yaml").write_text(RUN_FILE)
        (folder / "user_app.py").write_text(textwrap.dedent(APP))
        own = ["--buffer", buffer, "--trainer", trainer, "--rollout", rollout, "--output-dir", str(folder / "out")]
        super().__init__("coordinator", folder / "run.yaml", folder, *own, "--app", f"user_app:{app}")
        self.folder = folder

    def start(self, timeout_s: float = 120.0) -> "Coordinator":
        before = os.environ.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = f"{self.folder}:{before}"
        try:
            return super().start(timeout_s)
        finally:
            os.environ["PYTHONPATH"] = before

    @property
    def url(self) -> str:
        return f"http://{json.loads(self.ready_file.read_text())['rest_address']}"

    def workers(self) -> list[int]:
        """Processes that it started."""
        children = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children").read_text()
        every_thread = [path.read_text() for path in Path(f"/proc/{self.popen.pid}/task").glob("*/children")]
        return sorted({int(pid) for text in [children, *every_thread] for pid in text.split()})


@asynccontextmanager
async def coordinator(buffer, folder, *, app="engine", rollout=None, trainer=None, trainer_address=None):
    """A coordinator that is ready, its client, and its fakes."""
    async with AsyncExitStack() as stack:
        replica = await stack.enter_async_context(serve(rollout or FakeRollout()))
        if trainer_address is None:
            trainer_address = (await stack.enter_async_context(serve(trainer or FakeTrainer()))).address
        process = Coordinator(folder, buffer.address, trainer_address, replica.address, app)
        try:
            await asyncio.to_thread(process.start)
            yield process, await stack.enter_async_context(CoordinatorClient(process.address, timeout_s=20))
        finally:
            process.kill()


async def watch(client, timeout_s=120.0):
    return [event async for event in client.watch_run(timeout_s=timeout_s)]


async def until_phase(client, phase):
    async for event in client.watch_run(timeout_s=120):
        if event.status.phase == phase:
            return


async def test_a_run_is_seen_the_same_over_grpc_and_http(buffer, run_id, tmp_path):
    async with coordinator(buffer, tmp_path) as (process, client), httpx.AsyncClient(base_url=process.url) as http:
        assert (await client.get_run()).state == pb.RUN_STATE_UNSPECIFIED
        assert (await http.get("/status")).json()["state"] == "none"
        with pytest.raises(NotFoundError, match="no run was started"):
            await watch(client)

        started = await client.start_run(run_id)
        assert (started.state, started.dashboard_url) == (pb.RUN_STATE_STARTING, f"{process.url}/")
        live = await watch(client)
        replayed = await watch(client)
        assert replayed == live
        reports = [event.report for event in live if event.HasField("report")]
        assert [report.episode_id for report in reports] == [0, 1, 2]
        assert reports[0].metrics["reward_mean"] == 1.5  # 0.5 x the app's function + the built-in
        assert reports[0].metrics["reward/is_digit"] == reports[0].metrics["reward/digits_only"] == 1.0
        phases = [event.status.phase for event in live if event.status.state == pb.RUN_STATE_RUNNING]
        told = [phase for phase, _ in groupby(phases) if phase not in ("", "put")]  # training may begin before the close
        assert [phase for phase, _ in groupby(told)][:6] == ["prompts", "generate", "reward", "train", "publish", "commit"]

        status = await client.start_run(run_id)  # again: nothing happens
        assert (status.state, status.episode, status.policy_version) == (pb.RUN_STATE_SUCCEEDED, 3, 4)
        assert status.output_dir == str(tmp_path / "out") and (tmp_path / "out" / "summary.json").exists()
        with pytest.raises(ConflictError, match="drives one run in its life"):
            await client.start_run("another")
        with pytest.raises(NotFoundError, match="there is no run 'another' here"):
            await client.get_run("another")

        await http_agrees(http, status, reports)


async def http_agrees(http, status, reports):
    seen = (await http.get("/status")).json()
    assert (seen["run_id"], seen["state"], seen["episode"]) == (status.run_id, "succeeded", 3)
    assert seen["weights_digest"] == status.weights_digest
    assert seen["rewards"] == [[report.episode_id, report.metrics["reward_mean"]] for report in reports]
    assert seen["recent"][2]["metrics"] == dict(reports[2].metrics)
    assert {"generate", "train", "publish"} <= set(seen["seconds"])
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    metrics = (await http.get("/metrics")).text
    for line in ('baton_run_state{state="succeeded"} 1.0', "baton_policy_version 4.0", "baton_global_step 6.0"):
        assert line in metrics
    assert 'baton_phase_seconds_total{phase="train"}' in metrics
    assert 'baton_episode_metric{name="reward_mean"} 1.5' in metrics
    schema = (await http.get("/openapi.json")).json()
    assert {"/status", "/metrics", "/healthz"} <= set(schema["paths"])
    assert {method for path in schema["paths"].values() for method in path} == {"get"}  # read-only
    assert schema["components"]["schemas"]["Status"]["properties"]["waiting_for"]["description"]
    page = await http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "http://" not in page.text.replace("http://www.w3.org/2000/svg", "") and "https://" not in page.text


async def test_sigterm_while_it_generates_ends_run_and_process_within_seconds(buffer, run_id, tmp_path):
    async with coordinator(buffer, tmp_path, rollout=FakeRollout(delay_s=60)) as (process, client):
        await client.start_run(run_id)
        await until_phase(client, "generate")
        events = client.watch_run(timeout_s=120)
        await anext(events)  # from here on it is told of everything
        begun = time.monotonic()
        process.popen.send_signal(signal.SIGTERM)
        assert [event async for event in events][-1].status.state == pb.RUN_STATE_STOPPED
        assert await asyncio.to_thread(process.popen.wait, 50) == 0, process.output()
        assert time.monotonic() - begun < 40


async def test_a_trainer_that_is_killed_fails_the_run_and_is_named(buffer, run_id, tmp_path):
    port = free_port()
    script = (
        "import asyncio\nfrom baton.testing import FakeTrainer, serve\n"
        "async def main():\n"
        f"    async with serve(FakeTrainer(delay_s=60), port={port}):\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    trainer = Process([sys.executable, "-c", script], tmp_path / "trainer.log", lambda: True)
    trainer.start()
    try:
        async with coordinator(buffer, tmp_path, trainer_address=f"127.0.0.1:{port}") as (_, client):
            await client.start_run(run_id)
            await until_phase(client, "train")
            begun = time.monotonic()
            trainer.kill()
            status = (await watch(client))[-1].status
    finally:
        trainer.kill()
    assert status.state == pb.RUN_STATE_FAILED
    assert f"episode 0, train: trainer at 127.0.0.1:{port} is gone: connection refused" in status.error
    assert time.monotonic() - begun < 40


async def test_no_reward_worker_outlives_the_coordinator_not_even_a_hanging_one(buffer, run_id, tmp_path):
    async with coordinator(buffer, tmp_path, app="hanging") as (process, client):
        await client.start_run(run_id)
        await until_phase(client, "reward")
        await asyncio.sleep(0.3)
        workers = process.workers()
        assert workers
        process.kill()
        async with asyncio.timeout(60):
            while any(map(alive, workers)):
                await asyncio.sleep(0.1)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def run_module(*arguments):
    command = [sys.executable, "-m", "services.coordinator", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def test_help_answers_without_loading_anything_heavy():
    script = (
        "import runpy, sys\nsys.argv = ['coordinator', '--help']\n"
        "try:\n    runpy.run_module('services.coordinator', run_name='__main__')\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'vllm', 'fastapi', 'uvicorn', 'matplotlib', 'reasoning_gym', 'pebble', 'redis', 'pydantic'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, check=True)
    assert "LOADED []" in done.stdout
    assert "--rollout HOST:PORT" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no address for --buffer HOST:PORT, --trainer HOST:PORT, --rollout HOST:PORT: give it, or addresses in"),
        (["--set", "runtime.num_episod=3"], "runtime.num_episod: got 3; is not an option; did you mean num_episode?"),
        (["--app", "nowhere:engine"], "app nowhere:engine: there is no module 'nowhere'"),
    ],
)
def test_a_start_that_cannot_work_ends_with_its_cause_and_fix(tmp_path, options, message):
    (tmp_path / "run.yaml").write_text(RUN_FILE)
    done = run_module("--run-file", str(tmp_path / "run.yaml"), *options)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
