"""A checkpoint or export has its name only when it is whole, and an older one keeps it until then."""

import os
import threading
from pathlib import Path

import pytest

from baton.errors import InvalidRequestError
from services.trainer.whole_directory import begin, finish

FILES = 150


def write(target: Path, content: str, files: int = 1) -> None:
    partial = begin(target, empty=True)
    for number in range(files):
        (partial / f"file-{number}").write_text(content)
    finish(target)


def test_nothing_has_the_name_before_it_is_finished(tmp_path: Path) -> None:
    target = tmp_path / "made" / "on" / "the" / "way" / "x"
    partial = begin(target, empty=True)
    (partial / "file").touch()
    assert not target.exists()
    finish(target)
    assert [path.name for path in target.iterdir()] == ["file"]
    assert [path.name for path in target.parent.iterdir()] == ["x"]


def test_an_older_one_is_replaced_as_a_whole_and_stays_until_then(tmp_path: Path) -> None:
    write(tmp_path / "x", "old", files=3)
    partial = begin(tmp_path / "x", empty=True)
    (partial / "file-0").write_text("new")
    assert (tmp_path / "x" / "file-0").read_text() == "old"
    finish(tmp_path / "x")
    assert {path.name: path.read_text() for path in (tmp_path / "x").iterdir()} == {"file-0": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_one_is_there_at_every_moment_while_it_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "x", "first")
    done, missing = threading.Event(), 0

    def replace() -> None:
        for number in range(500):
            write(tmp_path / "x", str(number))
        done.set()

    writer = threading.Thread(target=replace)
    writer.start()
    while not done.is_set():
        missing += not (tmp_path / "x" / "file-0").exists()
    writer.join()
    assert missing == 0


def test_what_a_killed_writer_left_does_not_get_in(tmp_path: Path) -> None:
    (tmp_path / "x.partial").mkdir()
    (tmp_path / "x.partial" / "stale").touch()
    write(tmp_path / "x", "new")
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["file-0"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_only_the_rank_that_is_told_to_empties_the_directory(tmp_path: Path) -> None:
    partial = begin(tmp_path / "x", empty=True)
    (partial / "of-another-rank").touch()
    assert begin(tmp_path / "x", empty=False) == partial
    assert (partial / "of-another-rank").exists()


@pytest.mark.parametrize("empty", [True, False])
def test_a_place_that_cannot_be_written_is_refused_by_name_on_every_rank(empty: bool, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidRequestError, match=f"cannot write {tmp_path}/file/x: .*choose another directory"):
        begin(tmp_path / "file" / "x", empty=empty)


def count(target: Path) -> int | None:
    """Files in the directory that has the name now; None if it has not, or another has it by the time they are counted."""
    try:
        descriptor = os.open(target, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        number = sum(1 for _ in os.scandir(descriptor))
        return number if target.stat().st_ino == os.fstat(descriptor).st_ino else None
    except FileNotFoundError:
        return None
    finally:
        os.close(descriptor)


def test_at_every_moment_the_name_leads_to_all_files_or_to_none(tmp_path: Path) -> None:
    """Also while the older one is removed: a half of that, under its name, would pass for whole."""
    target, done, seen = tmp_path / "x", threading.Event(), set()
    write(target, "0", FILES)

    def look() -> None:
        while not done.is_set():
            seen.add(count(target))

    looking = threading.Thread(target=look)
    looking.start()
    version = 0
    while version < 5 or FILES not in seen:  # it may look late
        version += 1
        write(target, str(version), FILES)
    done.set()
    looking.join(60)
    assert seen - {None} == {FILES}
