"""Saves checkpoints behind the training: a step waits for a copy in host memory, and a thread of each rank writes that.

    every rank:  copy to host memory | its file, with a digest |                                        |
    rank 0:                          |                         | books, marker, sums, name | older ones go

The ranks' threads meet in a process group of their own. Nothing is under its name before all of it is on the disk.
"""

import fcntl
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import torch.distributed as dist

from baton import errors
from baton.checkpoint_files import PARTIAL, checkpoints_in, read_marker
from baton.errors import BatonError, ConflictError, DeadlineError, InvalidRequestError, NotFoundError, ServiceFaultError
from baton.run_checkpoints import SET_ASIDE
from services.trainer import whole_directory
from services.trainer.megatron.checkpoint_pieces import Piece
from services.trainer.megatron.checkpoint_writer import RankFile, sync, write_books, write_rank_file

log = logging.getLogger(__name__)


class CheckpointSaver:
    """One save at a time. Every rank of the process group has one; `start` is a collective, the other methods are not."""

    def __init__(self, timeout_s: float) -> None:
        """A collective. `timeout_s`: how long one rank waits for another that still writes."""
        self._timeout_s = timeout_s
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self._is_first = dist.get_rank() == 0
        self._thread: Thread | None = None
        self._lock: int | None = None
        self._outcomes: dict[Path, BatonError | None] = {}

    def start(
        self, target: Path, pieces: Sequence[Piece], marker: Mapping[str, Any], keep: int | None = None, *,
        among_others: bool = False,
    ) -> None:  # fmt: skip
        """Copies the pieces that this rank writes, and begins to write the checkpoint `target`; returns after the copy.

        `marker` is what rank 0 writes into the marker; it has a `lineage`. `keep`: how many checkpoints of this lineage are
        left in the directory, the newest; None: all. `among_others`: other runs' checkpoints may be there. Waits for an
        earlier save. Raises, on every rank, InvalidRequestError if the directory cannot be written, has no room or holds
        another run's checkpoints, and ConflictError if another process is saving there.
        """
        self.join()
        marker = json.loads(json.dumps(marker))  # as it is now
        own = [piece for piece in pieces if piece.writes]
        lineage = None if among_others else marker["lineage"]
        partial = self._claim(target, lineage, sum(piece.tensor.nbytes for piece in own))
        try:
            copy = deque(replace(piece, tensor=piece.tensor.detach().to("cpu", copy=True)) for piece in own)
        except (RuntimeError, MemoryError) as error:  # the other ranks' threads wait for what becomes of this one
            copy = error
        self._outcomes.pop(target, None)
        self._thread = Thread(
            target=self._save, args=(target, partial, copy, marker, keep), name="checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self, target: Path) -> None:
        """Returns once `target` is whole. Raises what the save failed with, NotFoundError if none of it was begun here."""
        if target not in self._outcomes:
            self.join()
        if target not in self._outcomes:
            raise NotFoundError(f"no save of {target} was begun by this trainer; call SaveCheckpoint")
        if (error := self._outcomes[target]) is not None:
            raise error

    def close(self) -> None:
        """Waits for a save that is under way."""
        try:
            self.join()
        except DeadlineError as error:
            log.error("%s", error)

    def join(self) -> None:
        """Waits for a save that is under way, whatever becomes of it. Raises DeadlineError."""
        if self._thread is not None:
            self._thread.join(self._timeout_s)
            if self._thread.is_alive():
                raise DeadlineError(f"a checkpoint is not written after {self._timeout_s:g} s; look at the disk it goes to")

    def _claim(self, target: Path, lineage: str | None, size: int) -> Path:
        """Makes the directory to write into, or raises on every rank why there is none."""
        total, error, partial = sum(self._gathered(size)), None, None
        try:
            partial = self._begin(target, lineage, total)
        except BatonError as reason:
            error = type(reason).__name__, str(reason)
        if problems := [problem for problem in self._gathered(error) if problem]:
            self._release()
            kind, message = problems[0]
            raise getattr(errors, kind)(message)
        return partial

    def _begin(self, target: Path, lineage: str | None, total: int) -> Path:
        if not self._is_first:
            return whole_directory.begin(target, empty=False)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(target.parent)
            if lineage is not None:
                _refuse_other_runs(target, lineage)
                for left in target.parent.glob(f"step-*{PARTIAL}"):  # by a trainer that was killed
                    shutil.rmtree(left, ignore_errors=True)
            free = shutil.disk_usage(target.parent).free
        except OSError as error:
            raise InvalidRequestError(f"cannot write {target}: {error}; choose another directory") from error
        if free < total:
            raise InvalidRequestError(
                f"{target.parent} has {free:,} bytes left, and a checkpoint needs {total:,}; the checkpoints there are as "
                "they were: make room, or keep fewer by runtime.keep_checkpoints"
            )
        return whole_directory.begin(target, empty=True)

    def _save(
        self, target: Path, partial: Path, copy: deque[Piece] | Exception, marker: dict[str, Any], keep: int | None
    ) -> None:  # fmt: skip
        """The thread: whatever happens becomes the outcome."""
        try:
            outcomes = self._gathered(_written(copy, partial))
            error = self._finished(target, partial, outcomes, marker) if self._is_first else None
            self._outcomes[target] = next((problem for problem in self._gathered(error) if problem), None)
        except Exception as error:  # another rank has died, or does not come
            self._outcomes[target] = ServiceFaultError(f"cannot save {target}: a rank is gone ({error})")
        if (error := self._outcomes[target]) is not None:
            log.error("%s", error)
        elif self._is_first:
            _retain(target.parent, marker["lineage"], keep)
        self._release()

    def _finished(
        self, target: Path, partial: Path, outcomes: Sequence[RankFile | str], marker: dict[str, Any]
    ) -> BatonError | None:  # fmt: skip
        """Rank 0: gives the checkpoint its name, or removes what there is of it. Returns what went wrong."""
        problems = [f"rank {rank}: {problem}" for rank, problem in enumerate(outcomes) if isinstance(problem, str)]
        try:
            if not problems:
                write_books(outcomes, partial, marker)
                whole_directory.finish(target)
                sync(target.parent)
                return None
        except Exception as error:  # the other ranks must hear of it
            log.exception("cannot write into %s", partial)
            problems = [f"rank 0: {type(error).__name__}: {error}"]
        shutil.rmtree(partial, ignore_errors=True)
        return InvalidRequestError(
            f"cannot write {target}: {'; '.join(problems)}; nothing of it is left, and the checkpoints before it are as "
            "they were: make room, or choose another directory"
        )

    def _gathered(self, value: Any) -> list[Any]:
        """Every rank's value."""
        values: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(values, value, group=self._group)
        return values

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _written(copy: deque[Piece] | Exception, partial: Path) -> RankFile | str:
    """This rank's file, or why there is none. Memory is given back as it is written."""
    try:
        if isinstance(copy, Exception):
            raise copy
        return write_rank_file((copy.popleft() for _ in range(len(copy))), partial, dist.get_rank())
    except Exception as error:  # the other ranks must hear of it
        log.exception("cannot write into %s", partial)
        return f"{type(error).__name__}: {error}"


def _locked(directory: Path) -> int:
    """A lock of the directory, which ends with this process. Raises ConflictError if another one saves there."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConflictError(
            f"another trainer is saving into {directory} now; nothing was written: give each run a directory of its own"
        ) from None
    except OSError as error:
        log.warning("%s cannot be locked (%s): another trainer that saves there meanwhile is not noticed", directory, error)
    return descriptor


def _refuse_other_runs(target: Path, lineage: str) -> None:
    """A damaged checkpoint may be of this run, which goes on from the one before it, and is left as it is."""
    for path in checkpoints_in(target.parent):
        known = _lineage_of(path)
        if known is None and path == target:
            raise InvalidRequestError(f"{target} is there, and damaged; nothing was written: move it away")
        if known not in (None, lineage):
            raise InvalidRequestError(
                f"{target.parent} holds a checkpoint of another run, {path.name}; nothing was written: choose another "
                "directory, or load that checkpoint first, to go on with its run"
            )


def _lineage_of(path: Path) -> str | None:
    try:
        return read_marker(path)["lineage"]
    except BatonError:
        return None


def _retain(directory: Path, lineage: str, keep: int | None) -> None:
    """Removes the oldest checkpoints of the run until `keep` are left."""
    whole = [path for path in checkpoints_in(directory) if path.suffix != SET_ASIDE]
    own = [path for path in whole if _lineage_of(path) == lineage]
    for path in own[: len(own) - keep] if keep else []:
        try:
            whole_directory.remove(path)
        except OSError as error:
            log.warning("%s could not be removed, as runtime.keep_checkpoints wants: %s", path, error)
