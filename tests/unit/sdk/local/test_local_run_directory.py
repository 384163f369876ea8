"""baton.local.run_directory: a run's directory is its own, and a recycled pid is nobody's supervisor."""

import os
import subprocess

import pytest

from baton.errors import ConfigError, NotFoundError
from baton.local.process_tree import start_time
from baton.local.run_directory import DeploymentRecord, RunDirectory, ServiceRecord


def test_a_run_id_that_is_taken_is_refused_and_the_latest_run_stays_the_latest(tmp_path):
    RunDirectory.create(tmp_path, "a")
    RunDirectory.create(tmp_path, "b")
    with pytest.raises(ConfigError, match=r"a is taken: .* choose another --run-id"):
        RunDirectory.create(tmp_path, "a")
    assert (tmp_path / "latest").resolve() == tmp_path / "b"


def test_an_output_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--output-dir: cannot make .*/file/a: Not a directory"):
        RunDirectory.create(tmp_path / "file", "a")


@pytest.mark.parametrize("run_id", ["", ".", "..", ".a", "a/b", "a b", "latest", "ä"])
def test_a_run_id_that_is_no_plain_name_is_refused(tmp_path, run_id):
    with pytest.raises(ConfigError, match="--run-id"):
        RunDirectory.create(tmp_path / "runs", run_id)
    assert not (tmp_path / "runs").exists()


def test_a_record_is_read_as_it_was_written(tmp_path):
    directory = RunDirectory.create(tmp_path, "a")
    record = DeploymentRecord("a", 1, 2, {"buffer": ServiceRecord(3, "h:1", "log")}, "http://h:2", "why")
    directory.write_record(record)
    assert RunDirectory.find(tmp_path, None).read_record() == record


def test_a_run_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="no deployment x in"):
        RunDirectory.find(tmp_path, "x")


def test_a_deployment_runs_while_its_supervisor_lives_and_not_when_another_process_has_the_pid():
    child = subprocess.Popen(["sleep", "60"])
    record = DeploymentRecord("a", child.pid, start_time(child.pid))
    assert record.is_running
    assert not DeploymentRecord("a", os.getpid(), record.supervisor_start).is_running
    child.kill()
    child.wait()
    assert not record.is_running
    assert not DeploymentRecord("a", child.pid, None).is_running


def test_half_written_checkpoints_and_exports_are_removed_and_finished_ones_kept(tmp_path):
    directory = RunDirectory.create(tmp_path, "a")
    for name in ("checkpoints/step-1", "checkpoints/step-2.partial", "export", "export.partial"):
        (directory.path / name).mkdir(parents=True)
        (directory.path / name / "file").touch()
    directory.remove_half_written()
    assert {path.name for path in directory.path.rglob("*") if path.is_dir()} == {"checkpoints", "step-1", "export"}
