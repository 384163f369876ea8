"""Directories that appear under their name whole or not at all: written beside it as `<name>.partial`, then renamed."""

import shutil
from pathlib import Path

from baton.errors import InvalidRequestError

SUFFIX = ".partial"


def begin(target: Path, *, empty: bool) -> Path:
    """Makes the directory to write into, and empties it of what a killed writer left.

    Every rank calls it, so that all of them raise InvalidRequestError if it cannot be made; one rank passes `empty`, and
    nobody writes before that rank is done.
    """
    partial = target.with_name(target.name + SUFFIX)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if empty:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
    except OSError as error:
        raise InvalidRequestError(f"cannot write {target}: {error}; choose another directory") from error
    return partial


def finish(target: Path) -> None:
    """Gives the written directory its name. An older one is renamed before it is removed: no half of it is ever seen."""
    partial, old = target.with_name(target.name + SUFFIX), target.with_name(target.name + ".old" + SUFFIX)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.replace(old)
    partial.replace(target)
    shutil.rmtree(old, ignore_errors=True)
