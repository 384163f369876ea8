"""Directories that appear under their name whole or not at all: written beside it as `<name>.partial`, then renamed."""

import ctypes
import os
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
    """Gives the written directory its name; one that has it goes. At every moment one of them is there, and whole.

    Raises InvalidRequestError if one is there, on a file system that cannot exchange two names.
    """
    partial = target.with_name(target.name + SUFFIX)
    if target.exists():
        _exchange(partial, target)
        shutil.rmtree(partial)
    else:
        partial.replace(target)


def remove(target: Path) -> None:
    """Removes a directory that was finished; what is left of it, if this process is killed, has not its name."""
    partial = target.with_name(target.name + SUFFIX)
    target.replace(partial)
    shutil.rmtree(partial)


def _exchange(one: Path, other: Path) -> None:
    """Each gets the other's name, in one step (Linux)."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) != 0:
        raise InvalidRequestError(
            f"{other} is there already, and its file system cannot replace it at once ({os.strerror(ctypes.get_errno())}); "
            "remove it first, or choose another directory"
        )
