"""`baton run`: it shows the run, ends as the run ended, and leaves no process behind, whatever happens."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from cli_process import Place, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path):
    there = Place(tmp_path)
    yield there
    assert there.kill_all() == {}


def wait_for_event(place: Place, run_id: str = "a") -> None:
    """Returns once run `run_id` of an endless coordinator is under way."""
    record = place.runs / run_id / "deployment.json"
    wait_until(lambda: record.exists() and "coordinator" in json.loads(record.read_text())["services"], "all is ready")
    wait_until((place.directory / "start_was_asked").exists, "the run was started")
    time.sleep(0.3)


def test_a_run_is_told_in_lines_and_ends_with_its_rewards_and_files(place):
    done = place.baton("run", "run.yaml", "--run-id", "a")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    ready = {line.split()[0] for line in lines if " is ready at " in line}
    assert ready == {"store", "buffer", "rollout-0", "rollout-1", "trainer", "coordinator"}
    run = lines[lines.index("dashboard: http://127.0.0.1:1234") + 1 :]
    assert run[:4] == [
        "episode 0: generate",
        "episode 0: train",
        "episode 0 done (1 of 2): reward 0.250, loss 0.5000, seconds 4.0 (generate 2.5, train 1.5)",
        "episode 1: generate",
    ]
    assert run[6:] == [
        "the run has succeeded after 0.0 s",
        "mean reward: 0.250 over the first two episodes, 0.750 over the last two",
        f"wrote {place.runs}/a/summary.json",
    ]


@pytest.mark.parametrize(("lists", "started"), [("[]", True), ("['policy,ppo_policy']", False)])
def test_replicas_start_beside_the_trainer_but_after_it_where_they_share_its_gpus(place, lists, started):
    place.environment["CUDA_VISIBLE_DEVICES"] = "0,1,2,3"
    options = [f"runtime.colocation={lists}", "models.policy.gpu_memory_utilization=0.3"]
    done = place.baton("run", "run.yaml", "--run-id", "a", *(f"--set={option}" for option in options), told="trainer:crash")
    assert "trainer: the model does not fit" in done.stderr
    assert (place.runs / "a" / "logs" / "rollout-0.log").exists() == started
    assert ("note: trainer and rollout-0 share GPU 0" in done.stdout) != started


def test_in_a_terminal_the_last_episodes_stand_in_a_table(place):
    ours, theirs = pty.openpty()
    process = place.start("run", "run.yaml", stdout=theirs, stdin=theirs)
    os.close(theirs)
    screen = ""
    try:
        while chunk := os.read(ours, 65536).decode(errors="replace"):
            screen += chunk
    except OSError:  # how Linux says that the other side is closed
        pass
    assert process.wait(120) == 0, screen
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen)
    assert re.search(r"episode +reward +loss", plain)
    assert re.search(r"1 +0\.750 +0\.5000 .* 4\.0 \(generate 2\.5, train 1\.5\)", plain)
    assert "succeeded" in plain and "2/2" in plain
    assert screen.rfind("\x1b[?25h") > screen.rfind("\x1b[?25l")  # the cursor is back


def test_an_unknown_key_ends_with_2_and_the_nearest_key(place):
    done = place.baton("run", "run.yaml", "--set", "runtime.num_episodes=3")
    assert done.returncode == 2
    assert re.search(r"^error: .*runtime.num_episodes: .*did you mean num_episode\?", done.stderr, re.S)
    assert "Traceback" not in done.stderr
    assert not place.runs.exists()


def test_a_run_id_that_is_taken_ends_with_2(place):
    (place.runs / "a").mkdir(parents=True)
    done = place.baton("run", "run.yaml", "--run-id", "a")
    assert done.returncode == 2
    assert "a is taken" in done.stderr and "choose another --run-id" in done.stderr


def test_a_run_that_fails_ends_with_1_and_its_error(place):
    done = place.baton("run", "run.yaml", told="coordinator:fail")
    assert done.returncode == 1
    assert done.stderr == "error: the run failed: the loss is not a number\n"


def test_a_service_that_crashes_at_its_start_ends_the_run_at_once_with_its_log(place):
    began = time.monotonic()
    done = place.baton("run", "run.yaml", "--run-id", "a", told="trainer:crash,rollout:never-ready")
    assert time.monotonic() - began < 100
    assert done.returncode == 1
    assert done.stderr.startswith("error: trainer exited with code 1")
    assert f"{place.runs}/a/logs/trainer.log" in done.stderr
    assert "    trainer: the model does not fit" in done.stderr


def test_a_service_that_dies_during_the_run_ends_it_with_name_and_code(place):
    process = place.start("run", "run.yaml", "--run-id", "a", told="coordinator:endless,buffer:crash-later")
    wait_for_event(place)
    (place.directory / "crash_now").touch()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert re.match(r"error: buffer exited with code 3", err)


def replica_record(place):
    return json.loads((place.runs / "a" / "deployment.json").read_text())["services"]["rollout-1"]


def test_a_replica_that_dies_is_started_again_at_its_address_and_nothing_else_ends(place):
    process = place.start("run", "run.yaml", "--run-id", "a", told="coordinator:endless")
    wait_for_event(place)
    before = replica_record(place)
    os.kill(before["pid"], signal.SIGKILL)
    wait_until(lambda: replica_record(place)["pid"] != before["pid"], "rollout-1 is back")
    assert replica_record(place)["address"] == before["address"]
    assert place.count("services.trainer") >= 3 and process.poll() is None
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "rollout-1 was ended by SIGKILL (if nobody sent it, the machine ran out of memory); starting it again" in out
    assert out.count(f"rollout-1 is ready at {before['address']}") == 2


def test_replicas_that_die_again_and_again_are_given_up_and_the_last_one_ends_the_run(place):
    process = place.start("run", "run.yaml", "--run-id", "a", told="coordinator:endless,rollout:crash-later")
    wait_for_event(place)
    (place.directory / "crash_now").touch()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert re.search(r"^rollout-[01] is given up; the run goes on without it", out, re.M)
    assert re.match(r"error: rollout-[01] exited with code 3, and so did the 3 before it; the last lines of ", err)
    assert out.count("starting it again") == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_run_in_order_and_then_everything(place, number):
    process = place.start("run", "run.yaml", "--run-id", "a", told="coordinator:endless")
    wait_for_event(place)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    assert f"{number.name}: stopping" in out
    assert (place.runs / "a" / "stop_was_asked").exists()
    first, *others = (place.directory / "ended").read_text().split()
    assert first == "coordinator"  # the others must not vanish under its work
    assert sorted(others) == ["buffer", "rollout", "rollout", "trainer", "trainer"]
    assert "shutdown" in (place.runs / "a" / "logs" / "store.log").read_text().lower()


@pytest.mark.parametrize("delay_s", [0.0, 0.4, 0.8])
def test_ctrl_c_during_the_start_leaves_nothing(place, delay_s):
    process = place.start("run", "run.yaml", told="rollout:never-ready")
    wait_until(lambda: place.runs.exists(), "the supervisor is at work")
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130


def test_services_that_ignore_sigterm_and_hide_orphans_are_ended_soon(place):
    told = "coordinator:endless,rollout:ignore-term,rollout:orphan,trainer:ignore-term,trainer:orphan"
    process = place.start("run", "run.yaml", "--run-id", "a", told=told)
    wait_for_event(place)
    assert place.count("services.trainer") >= 3  # the launcher and two ranks
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert time.monotonic() - began < 60


def test_a_second_ctrl_c_ends_everything_at_once(place):
    told = "coordinator:endless,rollout:ignore-term,trainer:orphan,trainer:ignore-term"
    process = place.start("run", "run.yaml", "--run-id", "a", told=told)
    wait_for_event(place)
    process.send_signal(signal.SIGINT)
    while "stopping" not in process.stdout.readline():
        assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert time.monotonic() - began < 4.5


def test_kill_9_of_the_command_leaves_nothing(place):
    told = "coordinator:endless,rollout:orphan,trainer:orphan"
    process = place.start("run", "run.yaml", "--run-id", "a", told=told)
    wait_for_event(place)
    assert place.count("") > 10
    process.kill()
    process.communicate()
    wait_until(lambda: place.processes() == {}, "all have ended")


def test_a_reader_that_goes_away_does_not_end_the_run(place):
    process = place.start("run", "run.yaml", "--run-id", "a")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(120) == 0
    assert (place.runs / "a" / "summary.json").exists()


def test_a_service_with_an_address_is_not_started_but_must_answer(place):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        options = ["--set", f"services.trainer_address='{address}'", "--set", "deadlines.startup_s=8"]
        done = place.baton("run", "run.yaml", *options, told="rollout:never-ready")
    assert done.returncode == 1
    assert "services.trainer" not in str(place.processes())
    assert re.search(rf"(trainer: no healthy service at {address}|rollout-. was not ready) within 8 s", done.stderr)


def test_an_external_coordinator_brings_its_services_and_is_left_running(place):
    told = "coordinator:endless"
    owner = place.start("up", "run.yaml", "--run-id", "owner", told=told)
    assert owner.wait(120) == 0
    address = json.loads((place.runs / "owner" / "deployment.json").read_text())["services"]["coordinator"]["address"]
    process = place.start("run", "run.yaml", "--run-id", "guest", "--set", f"services.coordinator_address='{address}'")
    wait_for_event(place, "guest")
    assert place.count("services.coordinator --run-file") == 2  # the owner's, and its keeper
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    status = json.loads(place.baton("status", "--json", "--run-id", "owner").stdout)
    assert status["services"]["coordinator"]["health"] == "serving"
    assert status["run"]["state"] == "stopped"
    assert place.baton("down", "--run-id", "owner").returncode == 0


def test_a_model_that_is_missing_is_said_before_anything_starts(place):
    done = place.baton("run", "run.yaml", "--set", "models.policy.model=./no_such_model")
    assert done.returncode == 2
    assert "models.policy.model: got './no_such_model'; must be a directory that exists" in done.stderr
    assert not place.runs.exists()


def test_help_answers_with_less_than_two_seconds_of_work_without_the_services():
    before = os.times()
    script = "import sys, baton.cli; sys.exit(any(name in sys.modules for name in ('services', 'torch', 'redis', 'vllm')))"
    assert subprocess.run([sys.executable, "-P", "-c", script], check=False).returncode == 0
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 2
