"""Directories that appear under their name whole or not at all: written beside it as `<name>.partial`, then renamed."""

import ctypes
import os
import shutil
from pathlib import Path

from baton.errors import InvalidRequestError

SUFFIX = ".partial"


def partial_of(target: Path) -> Path:
    """The directory to write into."""
    return target.with_name(target.name + SUFFIX)


def begin(target: Path, *, empty: bool) -> Path:
    """Makes the directory to write into, and empties it of what a killed writer left.

    Every rank calls it, and one of them passes `empty`. Raises InvalidRequestError on a rank that cannot make its part of
    the way, and on that one alone: the ranks tell each other what became of it before one of them writes.
    """
    partial = partial_of(target)
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
    partial = partial_of(target)
    if target.exists():
        _exchange(partial, target)
        shutil.rmtree(partial, ignore_errors=True)  # the new one is there: what is left of the older one is no failure
    else:
        partial.replace(target)


def remove(target: Path) -> None:
    """Removes a directory that was finished; what is left of it, if this process is killed, has not its name."""
    partial = partial_of(target)
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
