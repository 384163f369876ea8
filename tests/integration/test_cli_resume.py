"""`baton run --resume`: it waits for what is ending, refuses what still lives, and says from where the run goes on."""

import json
import signal
from pathlib import Path

import pytest
from cli_process import Place, wait_until

from markers import write_marker

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path):
    there = Place(tmp_path)
    yield there
    assert there.kill_all() == {}


def checkpoint(place: Place, step: int) -> None:
    folder = place.runs / "a" / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    write_marker(folder, {"run": {"between_episodes": True}})


def asked(place: Place) -> dict:
    return json.loads((place.directory / "start_was_asked").read_text())


def until_started(place: Place) -> None:
    file = place.directory / "start_was_asked"
    wait_until(file.exists, "the run was started")


def test_after_kill_9_of_baton_run_it_goes_on_at_once_with_services_of_its_own_on_the_same_store(place):
    first = place.start("run", "run.yaml", "--run-id", "a", told="coordinator:endless,trainer:ignore-term")
    until_started(place)
    assert asked(place) == {"resume": False, "resume_step": None}
    checkpoint(place, 4)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=120)
    done = place.baton("run", "--resume", "runs/a")
    assert done.returncode == 0, done.stderr
    assert f"note: a goes on from {place.runs}/a/checkpoints/step-00000004" in done.stdout
    assert "resuming a; logs are in" in done.stdout
    assert asked(place) == {"resume": True, "resume_step": None}
    assert len(list((place.runs / "a" / "store").glob("appendonlydir"))) == 1


def test_an_earlier_checkpoint_is_passed_on_by_its_optimizer_step(place):
    place.baton("run", "run.yaml", "--run-id", "a")
    checkpoint(place, 2)
    checkpoint(place, 4)
    done = place.baton("run", "run.yaml", "--resume", "--set", "runtime.load_data_checkpoint_iteration=2")
    assert done.returncode == 0, done.stderr
    assert asked(place) == {"resume": True, "resume_step": 2}


REFUSED = [
    (("--resume", "runs/a"), 1, r"no whole checkpoint between two episodes"),
    (("--resume", "runs/none"), 2, "runs/none"),
    (("--resume", "run.yaml", "--set", "runtime.seed=3"), 2, "runtime.seed: got 3; the run that is resumed has 42"),
]  # fmt: skip


def test_what_cannot_be_resumed_starts_nothing(place):
    place.baton("run", "run.yaml", "--run-id", "a")
    (place.directory / "start_was_asked").unlink()
    for arguments, code, message in REFUSED:
        refused = place.baton("run", *arguments)
        assert (refused.returncode, message in refused.stderr) == (code, True), refused.stderr
    assert not (place.directory / "start_was_asked").exists()


def test_a_run_that_is_at_work_is_not_resumed_beside_itself(place):
    first = place.start("run", "run.yaml", "--run-id", "a", told="coordinator:endless")
    until_started(place)
    checkpoint(place, 4)
    refused = place.baton("run", "--resume", str(Path("runs") / "a"))
    assert refused.returncode == 1 and f"still at work, kept by process {first.pid}" in refused.stderr, refused.stderr
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=120)
    assert first.returncode == 130
