"""A save whose last files find no room on the disk: every rank says so at once, and nothing is left of it."""

import os
from pathlib import Path
from typing import Any

import pytest

from baton.errors import BatonError
from baton.local.store import free_port
from ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]
WAIT_S = 40.0
"""For another rank. One that waits for a rank which does not come takes so long."""


def saves(rank: int, size: int, port: int, directory: Path) -> list[str]:
    """Three saves, of which the second finds the disk full when the books are written; what this rank was told of each."""
    import torch
    import torch.distributed as dist

    from services.trainer.megatron.checkpoint_pieces import Piece
    from services.trainer.megatron.checkpoint_saver import CheckpointSaver

    class OnFullDisk(CheckpointSaver):
        def _begin(self, target: Path, *arguments: Any) -> Path:
            partial = super()._begin(target, *arguments)
            if target.name == "step-2" and rank == 0:
                (partial / "common.pt").symlink_to("/dev/full")
            return partial

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo")
    saver, told = OnFullDisk(WAIT_S), []
    pieces = [Piece("vector", (size * 4,), (rank * 4,), torch.arange(4.0), writes=True)]
    for step in (1, 2, 3):
        target = directory / f"step-{step}"
        try:
            saver.start(target, pieces, {"lineage": "a", "format": 1})
            saver.wait(target)
        except BatonError as error:
            told.append(f"{type(error).__name__}: {error}")
        else:
            told.append("saved")
    dist.destroy_process_group()
    return told


def test_books_that_find_no_room_fail_the_save_on_all_ranks_at_once_and_the_next_one_is_whole(tmp_path: Path) -> None:
    first, second = run_ranks(saves, 2, free_port(), tmp_path, timeout_s=140)
    assert first == second
    assert (first[0], first[2]) == ("saved", "saved")
    assert first[1].startswith(
        f"InvalidRequestError: cannot write {tmp_path}/step-2: rank 0: OSError: [Errno 28] No space left on device"
    )
    assert "nothing of it is left, and the checkpoints before it are as they were" in first[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-3"]
