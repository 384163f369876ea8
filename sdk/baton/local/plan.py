"""From the user's words to a run that can start: run file, run id, directory."""

import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from baton.config import RunConfig, load_run
from baton.local import devices, preflight
from baton.local.run_directory import RunDirectory


@dataclass(frozen=True, slots=True)
class Plan:
    """One deployment to start. `app` is the user's program as module:attribute, None for a run without one."""

    config: RunConfig
    run_id: str
    directory: RunDirectory
    app: str | None


def make_plan(
    run_file: Path, overrides: Sequence[str] = (), *, app: str | None = None,
    run_id: str | None = None, output_dir: Path | None = None,
) -> tuple[Plan, list[str]]:  # fmt: skip
    """Checks everything that can be checked before a process starts, then makes the run's directory.

    Returns the plan and remarks for the user, as options without effect. Raises ConfigError, which names the fix; then
    nothing was written.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = _load(run_file, overrides, app)
    remarks = [str(warning.message) for warning in caught]
    remarks += config.remarks()
    preflight.check(config, app=app)
    remarks += devices.remarks(config, devices.place(config, devices.machine_gpus()))
    run_id = run_id or f"{re.sub('[^A-Za-z0-9._-]', '-', config.runtime.exp_name)}-{time.strftime('%Y%m%d-%H%M%S')}"
    directory = RunDirectory.create(output_dir or Path(config.runtime.output_dir), run_id)
    directory.run_file.touch(mode=0o600)  # what came from the environment may be secret
    directory.run_file.write_text(_complete(config))
    return Plan(config, run_id, directory, app), remarks


def _load(run_file: Path, overrides: Sequence[str], app: str | None) -> RunConfig:
    """The run; a file that leaves the choice of the algorithm to the engine gets that of the engine, which the trainer does
    not know."""
    config = load_run(run_file, overrides)
    if app is None or "algorithm" in config.model_fields_set:
        return config
    algorithms = preflight.load_app(app).ALGORITHMS
    return load_run(run_file, [*overrides, f"algorithm.name={algorithms[0]}"]) if algorithms else config


def _complete(config: RunConfig) -> str:
    """The run file that needs no other file: the models' own files are merged already, and lie elsewhere."""
    tree = yaml.safe_load(config.to_yaml())
    for role in tree["models"].values():
        if role:
            role.pop("model_config_file", None)
    return yaml.safe_dump(tree, sort_keys=False)
