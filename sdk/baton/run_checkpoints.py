"""The checkpoints of a run as its own coordinator and the command line look at them: how far was the run at each?

The trainer writes what the coordinator tells it of the run into the marker of a checkpoint, which gets its name last of all.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.checkpoint_files import read_marker
from baton.errors import BatonError, NotFoundError

FOLDER = "checkpoints"
"""In the run's own folder."""
SET_ASIDE = ".rolled-back"
"""What the name of a checkpoint ends with that the run, gone back to an earlier one, has left behind."""
_NAME = re.compile(r"step-([0-9]+)")


@dataclass(frozen=True, slots=True)
class RunCheckpoint:
    """A whole checkpoint of a run between two episodes."""

    path: Path
    global_step: int
    position: dict[str, Any]
    """See `services.coordinator.position`, which writes it."""


def run_checkpoints(run_folder: Path) -> list[RunCheckpoint]:
    """Those that a run can go on from, oldest first: of one that was asked for in the midst of an episode, a part of that
    episode would be trained again."""
    return _read(run_folder)[0]


def damaged_checkpoints(run_folder: Path) -> list[str]:
    """What is wrong with each of those of which nothing can be read: they are passed over."""
    return _read(run_folder)[1]


def _read(run_folder: Path) -> tuple[list[RunCheckpoint], list[str]]:
    found, problems = [], []
    for step, path in _steps(run_folder):
        try:
            position = read_marker(path).get("run") or {}
        except BatonError as error:
            problems.append(f"passed over: {error}")
        else:
            if position.get("between_episodes"):
                found.append(RunCheckpoint(path, step, position))
    return found, problems


def _steps(run_folder: Path) -> list[tuple[int, Path]]:
    """Those that have their name, with their optimizer steps, oldest first."""
    paths = (run_folder / FOLDER).glob("step-*")
    return sorted((int(name[1]), path) for path in paths if (name := _NAME.fullmatch(path.name)))


def checkpoint_to_resume(run_folder: Path, global_step: int | None = None) -> RunCheckpoint:
    """The newest, or the one of an optimizer step. Raises NotFoundError, with those that there are, if it is not there."""
    known, damaged = _read(run_folder)
    wanted = known if global_step is None else [one for one in known if one.global_step == global_step]
    if wanted:
        return wanted[-1]
    problems = "".join(f"; {problem}" for problem in damaged)
    if known:
        steps = ", ".join(str(one.global_step) for one in known)
        raise NotFoundError(
            f"{run_folder / FOLDER} has no whole checkpoint of optimizer step {global_step} between two episodes; it has "
            f"those of {steps}: set runtime.load_data_checkpoint_iteration to one of these, or leave it out for the newest"
            f"{problems}"
        )
    raise NotFoundError(
        f"{run_folder / FOLDER} has no whole checkpoint between two episodes, so there is nothing to resume; start the run "
        "anew, and set runtime.save_episode_interval to have checkpoints while it goes on"
        f"{problems}"
    )


def set_aside_after(run_folder: Path, global_step: int) -> None:
    """Renames the checkpoints of later optimizer steps, the newest first: they are no part of the run any more, and the next
    resumption must not take one of them for its newest."""
    for step, path in reversed(_steps(run_folder)):
        if step > global_step:
            aside = path.with_name(path.name + SET_ASIDE)
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
