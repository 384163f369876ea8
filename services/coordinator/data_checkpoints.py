"""The files by which the same command, given again, finds the run that it goes on with: `runtime.data_checkpoint_path`.

    step-00000012.json                     one for each checkpoint: how far the run was, and where its weights are
    latest_checkpointed_iteration.txt      optimizer step of the newest
"""

from pathlib import Path

from baton.config import RunConfig
from baton.data_checkpoints import LATEST, DataCheckpoint, data_checkpoints
from services.coordinator.position import Position


class DataCheckpoints:
    """Of one run; written after the checkpoint that they name."""

    def __init__(self, config: RunConfig, run_folder: Path) -> None:
        path = config.runtime.data_checkpoint_path
        self._folder = None if path is None else Path(path)
        self._kept = config.runtime.max_data_ckpt_nums
        self._samples = config.runtime.sample_per_episode
        self._samples_of = config.samples_of
        self._run_folder = run_folder

    def write(self, position: Position, checkpoint: str) -> None:
        """Adds one; the oldest beyond `runtime.max_data_ckpt_nums` go."""
        if self._folder is None or not position.between_episodes:
            return
        self._put(self._folder, position, checkpoint)
        for old in self._own(self._folder)[: -self._kept] if self._kept else []:
            (self._folder / old.file_name).unlink(missing_ok=True)

    def roll_back(self, position: Position, checkpoint: str) -> None:
        """Makes this the newest, and removes those of later optimizer steps: the run takes these anew."""
        if self._folder is None:
            return
        self._put(self._folder, position, checkpoint)  # it may have died before, or be beyond those that are kept
        for one in self._own(self._folder):
            if one.train_iteration > position.global_step:
                (self._folder / one.file_name).unlink(missing_ok=True)

    def _put(self, folder: Path, position: Position, checkpoint: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        one = DataCheckpoint(
            episode=position.episode, train_iteration=position.global_step,
            consumed_samples=self._samples_of(position.prompts_consumed), sample_per_episode=self._samples,
            run=str(self._run_folder), checkpoint=checkpoint,
        )  # fmt: skip
        _replace(folder / one.file_name, one.to_json())
        _replace(folder / LATEST, f"{position.global_step}\n")

    def _own(self, folder: Path) -> list[DataCheckpoint]:
        return [one for one in data_checkpoints(folder) if one.run == str(self._run_folder)]


def _replace(file: Path, text: str) -> None:
    """A reader sees the old content or the new one."""
    partial = file.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
