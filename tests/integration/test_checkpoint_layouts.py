"""A checkpoint of any layout goes on under any other, also one from before the first update."""

from functools import partial

import layouts_side
import pytest
from layouts_side import READS, WRITERS, Losses

from models import make_model
from processes import free_port
from ranks import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> Losses:
    """One rank writes; two ranks write and read all; one rank reads all."""
    directory = tmp_path_factory.mktemp("layouts")
    model, found = make_model(directory / "model"), {}
    for size, what in ((1, {"writes": True}), (2, {"writes": True, "reads": True}), (1, {"reads": True})):
        work = partial(layouts_side.work, **{"writes": False, "reads": False} | what)
        ranks = run_ranks(work, size, free_port(), model, directory, timeout_s=180)
        assert all(rank == ranks[0] for rank in ranks)
        found |= ranks[0]
    return found


@pytest.mark.parametrize(("writer", "distributed", "at"), READS)
@pytest.mark.parametrize("reader", WRITERS)
def test_training_goes_on_from_any_layouts_checkpoint_as_if_nothing_had_happened(
    losses: Losses, reader: str, writer: str, distributed: bool, at: int
) -> None:
    expected = losses["tp1", "itself", True, at]
    assert losses[reader, writer, distributed, at] == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_the_losses_tell_the_steps_apart(losses: Losses) -> None:
    start, later = (losses["tp1", "itself", True, at] for at in (0, 2))
    assert len({round(loss, 3) for loss in start + later}) == 4
