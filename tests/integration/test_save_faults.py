"""Saves that find the disk full with their last files, or a damaged checkpoint: every rank says so at once, and the next
save of them all is whole."""

import os
from pathlib import Path
from typing import Any

import pytest

from baton.errors import BatonError
from baton.local.store import free_port
from ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]
WAIT_S = 40.0
"""For another rank. One that waits for a rank which does not come takes so long."""
STEPS = (1, 2, 3, 4, 1)
"""What is saved. With the second the disk is full when the books are written; before the fourth the first is damaged."""


def saves(rank: int, size: int, port: int, directory: Path) -> list[str]:
    """What this rank was told of each save."""
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
    for step in STEPS:
        target = directory / f"step-{step}"
        if step == 4 and rank == 0:
            (directory / "step-1" / "baton.json").write_text("{")
        try:
            saver.start(target, pieces, {"lineage": "a", "format": 1})
            saver.wait(target)
        except BatonError as error:
            told.append(f"{type(error).__name__}: {error}")
        else:
            told.append("saved")
    dist.destroy_process_group()
    return told


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def told(directory: Path) -> list[str]:
    first, second = run_ranks(saves, 2, free_port(), directory, timeout_s=190)
    assert first == second
    return first


def test_books_that_find_no_room_fail_the_save_on_all_ranks_and_the_next_is_whole(told: list[str], directory: Path) -> None:
    assert (told[0], told[2]) == ("saved", "saved")
    reason = "rank 0: OSError: [Errno 28] No space left on device"
    assert told[1].startswith(f"InvalidRequestError: cannot write {directory}/step-2: {reason}")
    assert "nothing of it is left, and the checkpoints before it are as they were" in told[1]
    assert sorted(path.name for path in directory.iterdir()) == ["step-1", "step-3", "step-4"]


def test_a_damaged_checkpoint_is_not_taken_for_another_runs_and_not_overwritten(told: list[str], directory: Path) -> None:
    assert told[3] == "saved"
    assert told[4] == f"InvalidRequestError: {directory}/step-1 is there, and damaged; nothing was written: move it away"
    assert (directory / "step-1" / "baton.json").read_text() == "{"
