"""Data checkpoints: what `runtime.data_checkpoint_path` holds, and which of it a run goes on from."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from baton.errors import NotFoundError

LATEST = "latest_checkpointed_iteration.txt"
_NAME = re.compile(r"step-[0-9]+\.json")


@dataclass(frozen=True, slots=True)
class DataCheckpoint:
    """How far a run was, under the names that ChatLearn's users know, and where it is."""

    episode: int
    """Episodes done."""
    train_iteration: int
    """Optimizer steps taken."""
    consumed_samples: int
    sample_per_episode: int
    run: str
    """The run's own folder."""
    checkpoint: str
    """Directory of weights and optimizer state."""

    @property
    def file_name(self) -> str:
        """Its file's."""
        return f"step-{self.train_iteration:08d}.json"

    def to_json(self) -> str:
        """All fields."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, file: Path) -> Self:
        """What `to_json` wrote."""
        return cls(**json.loads(file.read_text(encoding="utf-8")))


def data_checkpoints(folder: Path) -> list[DataCheckpoint]:
    """All of a folder, which need not exist, by optimizer step."""
    files = folder.glob("step-*.json")
    found = [DataCheckpoint.read(file) for file in files if _NAME.fullmatch(file.name)]
    return sorted(found, key=lambda one: one.train_iteration)


def data_checkpoint_to_resume(folder: Path, train_iteration: int | None = None) -> DataCheckpoint | None:
    """That of an optimizer step, or the one that was written last; None if none was. Raises NotFoundError if the one that is
    named is not there."""
    known = {one.train_iteration: one for one in data_checkpoints(folder)}
    if train_iteration is None:
        if not (folder / LATEST).is_file():
            return None
        train_iteration = int((folder / LATEST).read_text())
        option = str(folder / LATEST)
    else:
        option = "runtime.load_data_checkpoint_iteration"
    if train_iteration in known:
        return known[train_iteration]
    there = ", ".join(map(str, known)) or "none"
    raise NotFoundError(
        f"{option}: says {train_iteration}, but {folder} has no data checkpoint of that optimizer step; it has {there}"
    )
