"""From the user's words to a run that can start: run file, run id, directory."""

import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from baton.config import RunConfig, load_run
from baton.config.yaml_reader import RunFileDumper, RunFileLoader
from baton.local import devices, preflight
from baton.local.run_directory import RunDirectory


@dataclass(frozen=True, slots=True)
class Resumption:
    """The wish to go on from the checkpoint of an optimizer step; None: the newest."""

    global_step: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """One deployment to start. `app` is the user's program as module:attribute, None for a run without one."""

    config: RunConfig
    run_id: str
    directory: RunDirectory
    app: str | None
    resumption: Resumption | None = None
    """None: the run is a new one."""


def make_plan(
    run_file: Path, overrides: Sequence[str] = (), *, app: str | None = None,
    run_id: str | None = None, output_dir: Path | None = None,
) -> tuple[Plan, list[str]]:  # fmt: skip
    """Checks everything that can be checked before a process starts, then makes the run's directory.

    Returns the plan and remarks for the user, as options without effect. Raises ConfigError, which names the fix; then
    nothing was written.
    """
    config, remarks = load_config(run_file, overrides, app)
    preflight.check(config, app=app)
    remarks += devices.remarks(config, devices.place(config, devices.machine_gpus()))
    run_id = run_id or f"{re.sub('[^A-Za-z0-9._-]', '-', config.runtime.exp_name)}-{time.strftime('%Y%m%d-%H%M%S')}"
    directory = RunDirectory.create(output_dir or Path(config.runtime.output_dir), run_id)
    save_run_file(directory, config)
    return Plan(config, run_id, directory, app), remarks


def load_config(run_file: Path, overrides: Sequence[str], app: str | None) -> tuple[RunConfig, list[str]]:
    """The run, and what is to be said of it before it starts."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = _load(run_file, overrides, app)
    return config, [*(str(warning.message) for warning in caught), *config.remarks()]


def save_run_file(directory: RunDirectory, config: RunConfig) -> None:
    """Writes what the services of the run are started with."""
    partial = directory.run_file.with_suffix(".partial")
    partial.touch(mode=0o600)  # what came from the environment may be secret
    partial.write_text(_complete(config))
    partial.replace(directory.run_file)


def _load(run_file: Path, overrides: Sequence[str], app: str | None) -> RunConfig:
    """The run; a file that leaves the choice of the algorithm to the engine gets that of the engine, which the trainer does
    not know."""
    config = load_run(run_file, overrides)
    if app is None or "algorithm" in config.model_fields_set:
        return config
    algorithms = preflight.load_app(app).ALGORITHMS
    return load_run(run_file, [*overrides, f"algorithm.name={algorithms[0]}"]) if algorithms else config


def _complete(config: RunConfig) -> str:
    """The run file that needs no other file: the models' own files are merged already, and lie elsewhere. Which checkpoint
    was resumed is of one start alone."""
    tree = yaml.load(config.to_yaml(), RunFileLoader)
    tree.get("runtime", {}).pop("load_data_checkpoint_iteration", None)
    for role in tree["models"].values():
        if role:
            role.pop("model_config_file", None)
    return yaml.dump(tree, Dumper=RunFileDumper, sort_keys=False)
