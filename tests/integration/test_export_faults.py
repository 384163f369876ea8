"""An export that fails on one rank: all ranks say so at once, nothing half is left, and the older export is as it was."""

import re
from pathlib import Path

import export_side
import pytest

from models import make_model
from processes import free_port
from ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
REASONS = {
    "file in the way": r"rank 0: .*File exists: '.*\.partial'",
    "weights": "rank 0: .*File too large",
    "adapter": "rank 1: .*File too large",
    "config": "rank 0: .*No such file or directory: '.*config.json'",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="module")
def told(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What each of two ranks was told."""
    model = make_model(tmp_path_factory.mktemp("model"), layers=2)
    return run_ranks(export_side.work, 2, free_port(), model, directory, timeout_s=250)


@pytest.mark.parametrize("case", REASONS)
def test_every_rank_says_which_one_failed_and_why(case: str, told: list[dict[str, str]], directory: Path) -> None:
    first, second = (of_rank[case] for of_rank in told)
    assert first == second
    target = directory / case / ("export-adapter" if case == "adapter" else "export")
    wanted = f"InvalidRequestError: cannot write {target}: {REASONS[case]}.*an older export there is as it was"
    assert re.search(wanted, first), first


@pytest.mark.parametrize("case", REASONS)
def test_the_older_export_is_left_and_nothing_of_the_new_one(case: str, told: list[dict[str, str]], directory: Path) -> None:
    target = directory / case / ("export-adapter" if case == "adapter" else "export")
    assert (target / export_side.OLDER).exists()
    left = {path.name for path in (directory / case).iterdir()} - {"export", "export-adapter"}
    assert left == ({"export.partial"} if case == "file in the way" else set())
    assert list(target.glob("*.safetensors"))


def test_the_ranks_are_ready_for_the_next_export(told: list[dict[str, str]], directory: Path) -> None:
    assert [of_rank["afterwards"] for of_rank in told] == ["nothing was raised"] * 2
    assert {path.name for path in (directory / "afterwards").iterdir()} == {"export", "export-adapter"}
