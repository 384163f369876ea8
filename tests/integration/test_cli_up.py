"""`baton up`, `status`, `logs` and `down`: a deployment in the background that is found again, and ended."""

import json
import os
import signal
import subprocess
import time

import pytest
from cli_process import Place, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path):
    there = Place(tmp_path)
    yield there
    assert there.kill_all() == {}


HEALTHY = "buffer:healthy,rollout:healthy,trainer:healthy"


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """A deployment that several tests look at. Yields its place and what `baton up` said."""
    there = Place(tmp_path_factory.mktemp("deployed"))
    up = there.baton("up", "run.yaml", "--run-id", "a", told=HEALTHY)
    yield there, up
    there.baton("down")
    assert there.kill_all() == {}


def test_up_returns_when_all_are_ready_and_prints_their_addresses(deployed):
    place, up = deployed
    assert up.returncode == 0, up.stderr
    record = json.loads((place.runs / "a" / "deployment.json").read_text())
    for name in ("store", "buffer", "rollout-0", "rollout-1", "trainer", "coordinator"):
        assert f"{name:<12} {record['services'][name]['address']}" in up.stdout
    assert (place.runs / "latest").resolve() == place.runs / "a"


def test_status_asks_every_service(deployed):
    place, _ = deployed
    status = json.loads(place.baton("status", "--json").stdout)
    assert status["running"]
    assert len(status["services"]) == 6
    assert {service["health"] for service in status["services"].values()} == {"serving"}
    assert status["run"] is None


def test_status_shows_a_service_that_does_not_answer(deployed):
    place, _ = deployed
    pid = json.loads((place.runs / "a" / "deployment.json").read_text())["services"]["buffer"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    status = place.baton("status")
    os.kill(pid, signal.SIGCONT)
    lines = {line.split()[0]: line for line in status.stdout.splitlines() if line.strip()}
    assert "not answering" in lines["buffer"]
    assert "serving" in lines["trainer"]


def test_down_ends_everything_and_says_what(place):
    assert place.baton("up", "run.yaml", "--run-id", "a").returncode == 0
    down = place.baton("down")
    assert down.returncode == 0
    ended = down.stdout.removeprefix("ended a: ").strip().split(", ")
    assert sorted(ended) == ["buffer", "coordinator", "rollout-0", "rollout-1", "store", "trainer"]
    assert place.processes() == {}
    assert json.loads(place.baton("status", "--json").stdout)["services"]["buffer"]["health"] == "ended"
    assert place.baton("down").stdout == "a is not running\n"


def test_the_deployment_ends_when_a_service_dies_and_status_says_why(place):
    assert place.baton("up", "run.yaml", told="trainer:crash-later").returncode == 0
    (place.directory / "crash_now").touch()
    wait_until(lambda: place.processes() == {}, "the supervisor has ended everything")
    status = json.loads(place.baton("status", "--json").stdout)
    assert not status["running"]
    assert status["error"].startswith("trainer exited with code ")


def test_up_fails_with_the_services_log_and_leaves_nothing(place):
    up = place.baton("up", "run.yaml", told="coordinator:crash")
    assert up.returncode == 1
    assert up.stderr.startswith("error: coordinator exited with code 1")
    assert "coordinator: the model does not fit" in up.stderr
    assert place.processes() == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_up_has_begun_to_start_ends_with_it(place, number):
    process = place.start("up", "run.yaml", told="rollout:never-ready")
    wait_until(lambda: place.count("services.rollout") >= 2, "it has begun")
    process.send_signal(number)
    process.communicate(timeout=120)
    wait_until(lambda: place.processes() == {}, "all have ended")


def test_kill_9_of_the_supervisor_leaves_nothing(place):
    assert place.baton("up", "run.yaml", told="rollout:orphan").returncode == 0
    record = json.loads((place.runs / "latest" / "deployment.json").read_text())
    os.kill(record["supervisor_pid"], signal.SIGKILL)
    wait_until(lambda: place.processes() == {}, "all have ended")


def test_down_does_not_touch_a_process_that_got_the_supervisors_pid(place):
    bystander = subprocess.Popen(["sleep", "600"])
    directory = place.runs / "old"
    directory.mkdir(parents=True)
    record = {"run_id": "old", "supervisor_pid": bystander.pid, "supervisor_start": 1, "services": {}}
    (directory / "deployment.json").write_text(json.dumps(record))
    (place.runs / "latest").symlink_to("old")
    down = place.baton("down")
    assert (down.returncode, down.stdout) == (0, "old is not running\n")
    time.sleep(0.2)
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_down_ends_a_run_in_the_foreground_too(place):
    process = place.start("run", "run.yaml", "--run-id", "a", told="coordinator:endless")
    wait_until(lambda: (place.runs / "a" / "ready" / "coordinator.json").exists(), "it runs")
    assert place.baton("down").stdout.startswith("ended a: ")
    assert process.wait(120) == 143
    process.communicate()


def test_logs_come_under_their_services_names_and_can_be_followed(deployed):
    place, _ = deployed
    lines = place.baton("logs").stdout.splitlines()
    assert "trainer      trainer has started" in lines
    assert any(line.startswith("store ") and "Ready to accept connections" in line for line in lines)
    assert place.baton("logs", "buffer").stdout == "buffer       buffer has started\n"
    missing = place.baton("logs", "bufer")
    assert missing.returncode == 1
    assert "bufer has no log" in missing.stderr and "rollout-0" in missing.stderr
    follower = place.start("logs", "buffer", "-f")
    assert follower.stdout.readline() == "buffer       buffer has started\n"
    with (place.runs / "latest" / "logs" / "buffer.log").open("a") as log:
        log.write("a line in ")
        log.flush()
        time.sleep(0.5)
        log.write("two parts\n")
    assert follower.stdout.readline() == "buffer       a line in two parts\n"
    follower.send_signal(signal.SIGINT)
    assert follower.wait(120) == 130
    follower.communicate()


def test_without_a_deployment_the_commands_say_so(place):
    for command in ("status", "down", "logs"):
        done = place.baton(command)
        assert done.returncode == 1
        assert "no deployment in runs" in done.stderr
