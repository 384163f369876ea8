"""baton ckpt verify: no checkpoint of a directory is left out, whichever of its files it has lost."""

from pathlib import Path

import pytest

from baton.checkpoint_files import INDEX, MARKER, SUMS, digest_of, sums_of
from baton.cli import ckpt
from baton.errors import NotFoundError

BOOKS = {MARKER: '{"format": 1, "files": {}}', INDEX: "{}"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Of two checkpoints."""
    for name in ("step-1", "step-2"):
        (path := tmp_path / "checkpoints" / name).mkdir(parents=True)
        for file, text in BOOKS.items():
            (path / file).write_text(text)
        (path / SUMS).write_text(sums_of({file: digest_of(path / file) for file in BOOKS}))
    return tmp_path


@pytest.mark.parametrize("missing", [MARKER, INDEX, SUMS])
@pytest.mark.parametrize("where", ["", "checkpoints", "checkpoints/step-2"])
def test_a_file_that_is_missing_is_named_and_is_no_success(
    run: Path, missing: str, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoints" / "step-2" / missing).unlink()
    assert not ckpt.verify(run / where)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"step-2/{missing}: ")
    assert lines[:-1] == ([] if where.endswith("step-2") else ["step-1: every byte is what was written"])


def test_a_save_that_was_killed_before_its_books_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "step-3.partial").mkdir()
    assert not ckpt.verify(run)
    assert capsys.readouterr().out.splitlines()[-1].startswith("step-3.partial/step-3.partial: a save that was not finished")


def test_whole_ones_are_a_success_and_none_at_all_is_an_error(run: Path, tmp_path: Path) -> None:
    assert ckpt.verify(run)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="is no checkpoint, and holds none"):
        ckpt.verify(tmp_path / "empty")
