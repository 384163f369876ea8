"""From the user's words to a run that goes on: its directory, its run file as it is wanted now, and the checkpoint.

    baton run --resume RUN_DIRECTORY             the run file that it has
    baton run --resume RUNFILE [--run-id ID]     that run file, for the run of this id, or the latest
    baton run RUNFILE                            the run that runtime.data_checkpoint_path names, if it names one
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from baton.config import RunConfig, load_run
from baton.config.problems import config_error
from baton.config.resume_rules import resume_problems
from baton.data_checkpoints import data_checkpoint_to_resume
from baton.errors import ConfigError, ConflictError
from baton.local import devices, preflight
from baton.local.plan import Plan, Resumption, load_config, make_plan, save_run_file
from baton.local.process_tree import start_time
from baton.local.run_directory import DeploymentRecord, RunDirectory
from baton.run_checkpoints import checkpoint_to_resume, damaged_checkpoints

END_S = 15.0
"""How long the processes of a run whose supervisor is gone may take to end."""
POLL_S = 0.1


def plan_run(
    target: Path, overrides: Sequence[str], *, app: str | None, run_id: str | None, output_dir: Path | None, resume: bool
) -> tuple[Plan, list[str]]:
    """A new run, or one that goes on: see above. Returns the plan and remarks. Raises ConfigError, NotFoundError if there is
    nothing to go on with, and ConflictError if the run is at work; then nothing was changed."""
    if target.is_dir():
        if not resume:
            raise ConfigError(f"{target}: is a directory; name a run file, or add --resume if it is a run to go on with")
        if run_id or output_dir:
            raise ConfigError(f"--run-id, --output-dir: {target} says already which run is resumed; leave them out")
        directory = RunDirectory(target.resolve())
        if not directory.run_file.is_file() or not directory.record_file.is_file():
            raise ConfigError(f"{target}: is no run's directory: it has no run.yaml and deployment.json; name runs/RUN_ID")
        return _plan_to_resume(directory, directory.run_file, overrides, app)
    config, _ = load_config(target, overrides, app)
    if resume:
        directory = RunDirectory.find(output_dir or Path(config.runtime.output_dir), run_id)
        return _plan_to_resume(directory, target, overrides, app)
    if directory := _named_by_data_checkpoint(config, run_id):
        return _plan_to_resume(directory, target, overrides, app)
    return make_plan(target, overrides, app=app, run_id=run_id, output_dir=output_dir)


def _named_by_data_checkpoint(config: RunConfig, run_id: str | None) -> RunDirectory | None:
    runtime = config.runtime
    step = runtime.load_data_checkpoint_iteration
    if runtime.data_checkpoint_path is None:
        if step is not None:
            raise ConfigError(
                f"runtime.load_data_checkpoint_iteration: got {step}; nothing is resumed; add --resume, or set "
                "runtime.data_checkpoint_path"
            )
        return None
    if not runtime.enable_resume_training:
        return None
    found = data_checkpoint_to_resume(Path(runtime.data_checkpoint_path), step)
    if found is None:
        return None
    directory = RunDirectory(Path(found.run))
    fresh = "to start a new one, set runtime.enable_resume_training to false"
    if not directory.record_file.is_file():
        raise ConfigError(
            f"runtime.data_checkpoint_path: {runtime.data_checkpoint_path} names the run in {found.run}, which is not "
            f"there; put it back; {fresh}"
        )
    if run_id not in (None, directory.path.name):
        raise ConfigError(
            f"--run-id: got {run_id}; runtime.data_checkpoint_path names run {directory.path.name}, which goes on; leave it "
            f"out; {fresh}"
        )
    return directory


def _plan_to_resume(
    directory: RunDirectory, run_file: Path, overrides: Sequence[str], app: str | None
) -> tuple[Plan, list[str]]:
    record = directory.read_record()
    app = app or record.app
    config, remarks = load_config(run_file, overrides, app)
    before, run_id = load_run(directory.run_file), directory.path.name
    _require_over(record, run_id)
    if problems := resume_problems(config, before):
        raise config_error(problems, f"{run_file} resuming {run_id}")
    _require_unfinished(directory, config)
    step = config.runtime.load_data_checkpoint_iteration
    if config.services.coordinator_address is None:  # another one knows its own checkpoints
        checkpoint = checkpoint_to_resume(directory.path, step)
        remarks += damaged_checkpoints(directory.path)
        remarks.append(f"{run_id} goes on from {checkpoint.path}")
    preflight.check(config, app=app)
    remarks += devices.remarks(config, devices.place(config, devices.machine_gpus()))
    if config.optimizer_steps != before.optimizer_steps and _decays_over_the_run(config):
        remarks.append(f"the learning rate goes on to decay over {before.optimizer_steps} steps, as in the checkpoint")
    directory.prepare_again()
    save_run_file(directory, config)
    return Plan(config, run_id, directory, app, Resumption(step)), remarks


def _require_over(record: DeploymentRecord, run_id: str) -> None:
    """Raises ConflictError while the run's supervisor lives, or a process of it does not end."""
    if record.is_running:
        raise ConflictError(
            f"run {run_id} is still at work, kept by process {record.supervisor_pid}; end it first (Ctrl-C there, or "
            "`baton down`)"
        )
    deadline = time.monotonic() + END_S
    while left := [f"{name} (process {one.pid})" for name, one in record.services.items() if one.start is not None
                   and start_time(one.pid) == one.start]:  # fmt: skip
        if time.monotonic() > deadline:
            raise ConflictError(
                f"run {run_id} has no supervisor any more, but {', '.join(left)} of it still live after {END_S:g} s; end "
                "them"
            )
        time.sleep(POLL_S)


def _require_unfinished(directory: RunDirectory, config: RunConfig) -> None:
    """Raises ConfigError if all that was asked for is done."""
    summary = directory.path / "summary.json"
    if not summary.is_file():
        return
    told = json.loads(summary.read_text())
    if told.get("state") == "succeeded" and told["episodes"] >= config.runtime.num_episode:
        raise ConfigError(
            f"run {directory.path.name} has succeeded, and has all its {told['episodes']} episodes; to go on with it raise "
            "runtime.num_episode, as by --set runtime.num_episode=N"
        )


def _decays_over_the_run(config: RunConfig) -> bool:
    trained = (config.models.ppo_policy, config.models.ppo_value)
    return any(one and one.lr_decay_style != "constant" and one.lr_decay_iters is None for one in trained)
