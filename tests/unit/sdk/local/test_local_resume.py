"""baton.local.resume: which run goes on, from where, and everything that is wrong with the wish before a process starts."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from baton.config import load_run
from baton.data_checkpoints import LATEST, DataCheckpoint
from baton.errors import ConfigError, ConflictError, NotFoundError
from baton.local import resume
from baton.local.plan import Resumption
from baton.local.process_tree import start_time
from baton.local.resume import plan_run
from baton.local.run_directory import DeploymentRecord, RunDirectory, ServiceRecord
from markers import write_marker


@pytest.fixture
def run_file(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(
        "runtime: {num_episode: 4, sample_per_episode: 8, num_inference_per_prompt: 4}\n"
        "models: {policy: {}}\nalgorithm: {name: grpo}\n"
    )
    return path


def planned(target: Path, *overrides: str, resume: bool = True, run_id=None, app=None):
    return plan_run(target, overrides, app=app, run_id=run_id, output_dir=None, resume=resume)


@pytest.fixture
def directory(run_file) -> RunDirectory:
    """Of a run that ended after two checkpoints."""
    plan, _ = planned(run_file, resume=False, run_id="a")
    plan.directory.write_record(DeploymentRecord("a", 1, 2, app="program:engine"))
    plan.directory.ready_file("trainer").write_text("{}")
    for step in (2, 4):
        checkpoint(plan.directory, step)
    return plan.directory


def checkpoint(directory: RunDirectory, step: int, **position) -> None:
    path = directory.path / "checkpoints" / f"step-{step:08d}"
    path.mkdir(parents=True)
    run = {"run_id": "a", "between_episodes": True, "episode": step // 2} | position
    write_marker(path, {"global_step": step, "run": run})


def test_a_directory_goes_on_by_its_own_run_file_with_its_own_program_from_its_newest_checkpoint(directory):
    plan, remarks = planned(directory.path, "deadlines.generate_s=7")
    assert (plan.run_id, plan.app, plan.resumption) == ("a", "program:engine", Resumption(None))
    assert f"a goes on from {directory.path / 'checkpoints' / 'step-00000004'}" in remarks
    assert load_run(directory.run_file).deadlines.generate_s == 7, "the services read it there"
    assert not (directory.path / "ready").exists(), "what earlier services said is not taken for a later one's word"


def test_a_run_file_goes_on_with_the_latest_run_or_the_one_that_is_named(directory, run_file):
    assert planned(run_file)[0].directory.path == directory.path
    planned(run_file, resume=False, run_id="b")
    assert planned(run_file, run_id="a")[0].directory.path == directory.path
    assert (directory.path.parent / "latest").resolve() == directory.path


def test_an_earlier_checkpoint_may_be_named_for_one_start(directory):
    plan, _ = planned(directory.path, "runtime.load_data_checkpoint_iteration=2")
    assert plan.resumption == Resumption(2)
    assert load_run(directory.run_file).runtime.load_data_checkpoint_iteration is None
    with pytest.raises(NotFoundError, match=r"no whole checkpoint of optimizer step 3 .* has those of 2, 4"):
        planned(directory.path, "runtime.load_data_checkpoint_iteration=3")


def test_a_checkpoint_whose_marker_is_torn_or_gone_is_passed_over_by_name_and_an_older_one_is_taken(directory):
    for step in (6, 8):
        checkpoint(directory, step)
    newest, before = (directory.path / "checkpoints" / f"step-{step:08d}" / "baton.json" for step in (8, 6))
    newest.write_text(newest.read_text()[:20])
    before.unlink()
    plan, remarks = planned(directory.path)
    assert plan.resumption == Resumption(None)
    assert any(re.search(f"passed over: {newest} is damaged", remark) for remark in remarks)
    assert any(re.search(f"passed over: {before.parent} is not a whole checkpoint", remark) for remark in remarks)
    assert f"a goes on from {directory.path / 'checkpoints' / 'step-00000004'}" in remarks
    with pytest.raises(NotFoundError, match=rf"of optimizer step 8 .* has those of 2, 4.*passed over: {newest} is damaged"):
        planned(directory.path, "runtime.load_data_checkpoint_iteration=8")


def test_an_option_that_may_not_change_is_named_and_nothing_is_written(directory):
    before = directory.run_file.read_text()
    with pytest.raises(ConfigError, match=r"(?s)2 problems.*runtime.seed: got 7; .*models.ppo_policy.lr: got 1.0"):
        planned(directory.path, "runtime.seed=7", "models.ppo_policy.lr=1")
    assert directory.run_file.read_text() == before and (directory.path / "ready").exists()


@pytest.mark.parametrize("position", [None, {"between_episodes": False}], ids=["none", "in the midst of an episode"])
def test_a_run_without_a_checkpoint_to_go_on_from_says_so(run_file, position):
    plan, _ = planned(run_file, resume=False, run_id="a")
    plan.directory.write_record(DeploymentRecord("a", 1, 2))
    if position:
        checkpoint(plan.directory, 3, **position)
    with pytest.raises(NotFoundError, match=r"no whole checkpoint between two episodes.*save_episode_interval"):
        planned(plan.directory.path)


def test_a_run_that_has_all_its_episodes_goes_on_only_with_more(directory):
    (directory.path / "summary.json").write_text(json.dumps({"state": "succeeded", "episodes": 4}))
    with pytest.raises(ConfigError, match=r"run a has succeeded, and has all its 4 episodes.*raise runtime.num_episode"):
        planned(directory.path)
    assert planned(directory.path, "runtime.num_episode=5")[0].config.runtime.num_episode == 5


def test_a_run_that_is_at_work_is_left_alone(directory, monkeypatch):
    child = subprocess.Popen(["sleep", "60"])
    try:
        directory.write_record(DeploymentRecord("a", child.pid, start_time(child.pid)))
        with pytest.raises(ConflictError, match=rf"run a is still at work, kept by process {child.pid}"):
            planned(directory.path)
        orphan = ServiceRecord.of(child.pid, "h:1", Path("log"))
        directory.write_record(DeploymentRecord("a", 1, 2, {"trainer": orphan}))
        monkeypatch.setattr(resume, "END_S", 0.2)
        with pytest.raises(ConflictError, match=rf"trainer \(process {child.pid}\) of it still live after 0.2 s"):
            planned(directory.path)
    finally:
        child.kill()
        child.wait()
    assert planned(directory.path)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("runs/a", {"resume": False}, "is a directory; name a run file, or add --resume"),
        ("runs", {}, "is no run's directory"),
        ("runs/a", {"run_id": "a"}, "says already which run is resumed"),
        ("run.yaml", {"run_id": "c"}, "no deployment c"),
    ],
)
def test_a_wish_that_names_no_run_is_told_what_to_name(directory, target, options, message):
    with pytest.raises((ConfigError, NotFoundError), match=message):
        planned(Path(target), **options)


def data_checkpoint(folder: Path, run: Path, step: int) -> None:
    folder.mkdir(exist_ok=True)
    one = DataCheckpoint(step // 2, step, 8, 8, str(run), str(run / "checkpoints" / f"step-{step:08d}"))
    (folder / one.file_name).write_text(one.to_json())
    (folder / LATEST).write_text(f"{step}\n")


DATA = "runtime.data_checkpoint_path=data"


def test_the_same_command_given_again_goes_on_with_the_run_that_its_data_checkpoints_name(directory, run_file, tmp_path):
    data_checkpoint(tmp_path / "data", directory.path, 2)
    data_checkpoint(tmp_path / "data", directory.path, 4)
    plan, _ = planned(run_file, DATA, resume=False)
    assert (plan.directory.path, plan.resumption) == (directory.path, Resumption(None))
    plan, _ = planned(run_file, DATA, "runtime.load_data_checkpoint_iteration=2", resume=False)
    assert plan.resumption == Resumption(2)
    with pytest.raises(NotFoundError, match=r"load_data_checkpoint_iteration: says 3, but data has no .* it has 2, 4"):
        planned(run_file, DATA, "runtime.load_data_checkpoint_iteration=3", resume=False)
    with pytest.raises(ConfigError, match=r"--run-id: got b; runtime.data_checkpoint_path names run a"):
        planned(run_file, DATA, resume=False, run_id="b")


def test_without_a_data_checkpoint_or_when_it_shall_not_a_run_begins_anew(directory, run_file, tmp_path):
    assert planned(run_file, DATA, resume=False, run_id="b")[0].resumption is None
    data_checkpoint(tmp_path / "data", directory.path, 4)
    fresh, _ = planned(run_file, DATA, "runtime.enable_resume_training=false", resume=False, run_id="c")
    assert fresh.resumption is None


def test_a_data_checkpoint_of_a_run_that_is_not_there_says_how_to_begin_anew(run_file, tmp_path):
    data_checkpoint(tmp_path / "data", tmp_path / "gone", 4)
    with pytest.raises(ConfigError, match=r"names the run in .*/gone, which is not there.*enable_resume_training to false"):
        planned(run_file, DATA, resume=False)


def test_a_checkpoint_that_is_named_when_nothing_is_resumed_is_a_mistake(run_file):
    with pytest.raises(ConfigError, match=r"load_data_checkpoint_iteration: got 3; nothing is resumed; add --resume"):
        planned(run_file, "runtime.load_data_checkpoint_iteration=3", resume=False)
