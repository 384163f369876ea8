"""A checkpoint of any layout goes on under any other, also one from before the first update, and no rank reads what it does
not keep."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import layouts_side
import pytest
import torch
from layouts_side import HANDED_ON, LAYOUTS, NAMES, READS, Found

from models import make_model
from processes import free_port
from ranks import run_ranks
from services.trainer.megatron.checkpoint_pieces import Piece
from services.trainer.megatron.checkpoint_reader import CheckpointReader

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

READ_AT_MOST = 1.2
"""Bytes that a rank reads, of those that it keeps."""
SIZES = {"tp1": "1 x 1 x 1", "dp2": "1 x 1 x 2", "tp2": "2 x 1 x 1", "pp2": "1 x 2 x 1", "tp2-pp2": "2 x 2 x 1"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="module")
def found(directory: Path) -> Found:
    """One, two and four ranks write, and read all, at the same time."""
    model = make_model(directory / "model")
    make_model(directory / "other", seed=1)
    with ThreadPoolExecutor(len(LAYOUTS)) as pool:
        groups = pool.map(
            lambda size: run_ranks(layouts_side.work, size, free_port(), model, directory, timeout_s=800), LAYOUTS
        )
        whole = Found()
        for ranks in groups:
            assert all(rank.losses == ranks[0].losses for rank in ranks)
            whole.losses |= ranks[0].losses
            whole.refusals |= ranks[0].refusals
            whole.started |= ranks[0].started
            whole.reads += [read for rank in ranks for read in rank.reads]
        return whole


@pytest.mark.parametrize(("writer", "at"), READS)
@pytest.mark.parametrize("reader", NAMES)
def test_training_goes_on_from_any_layouts_checkpoint_as_if_nothing_had_happened(
    found: Found, reader: str, writer: str, at: int
) -> None:
    expected = found.losses["tp1", "itself", at]
    assert found.losses[reader, writer, at] == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_the_losses_tell_the_steps_apart(found: Found) -> None:
    start, later = (found.losses["tp1", "itself", at] for at in (0, 2))
    assert len({round(loss, 3) for loss in start + later}) == 4


def test_no_rank_reads_more_than_it_keeps(found: Found, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print("\nreader      writer      rank      read      kept     x   peak memory beyond it")
        for read in sorted(found.reads, key=lambda read: (read.reader, read.writer, read.rank)):
            sizes = f"{read.read:9,} {read.kept:9,} {read.read / read.kept:5.2f} {read.extra:11,}"
            print(f"{read.reader:11} {read.writer:11} {read.rank:4} {sizes}")
    assert len(found.reads) == len(READS) * (2 * 1 + 4 * 2 + 1 * 4)
    assert max(read.read / read.kept for read in found.reads) <= READ_AT_MOST
    assert min(read.read / read.kept for read in found.reads) >= 1.0, "a rank that reads less has not restored everything"


def test_where_a_reader_may_not_adapt_another_layout_is_refused_with_both_named(found: Found) -> None:
    def sizes(name: str) -> str:
        tensor, pipeline, data = SIZES[name.removesuffix("-plain")].split(" x ")
        return f"tensor {tensor} x pipeline {pipeline} x data {data}"

    for (reader, writer), message in found.refusals.items():
        if sizes(reader) == sizes(writer):
            assert message == ""
        else:
            both = f"written under the parallel layout {sizes(writer)}, and this group has {sizes(reader)}"
            assert re.search(re.escape(both), message)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """All whole tensors of a checkpoint."""
    reader = CheckpointReader(path)
    pieces = [
        Piece(name, shape, (0,) * len(shape), torch.empty(shape, dtype=dtype), writes=True)
        for name, (shape, dtype) in reader.tensors.items()
    ]
    reader.read(pieces)
    return {piece.key: piece.tensor for piece in pieces}


def test_what_is_handed_on_from_layout_to_layout_keeps_every_bit_of_weights_and_optimizer(
    found: Found, directory: Path
) -> None:
    first, *others = (tensors(directory / f"bfloat16-{name}" / "step-00000002") for name in HANDED_ON)
    weights = [name for name in first if not name.startswith("optimizer.")]
    kinds = [f"optimizer.state.{kind}." for kind in ("exp_avg", "exp_avg_sq", "fp32_param")]
    assert set(first) == {kind + name for kind in ("", *kinds) for name in weights}
    assert {first[name].dtype for name in weights} == {torch.bfloat16}
    assert {first[kind + name].dtype for kind in kinds for name in weights} == {torch.float32}
    for other in others:
        assert set(other) == set(first)
        assert [name for name, tensor in first.items() if not torch.equal(other[name], tensor)] == []


def test_a_model_starts_from_the_checkpoint_or_the_hugging_face_directory_that_is_named_and_from_nothing_else(
    found: Found, directory: Path
) -> None:
    assert found.started["same"] > 1e-3, "the checkpoint must have other weights than the model"
    assert (found.started["checkpoint"], found.started["hugging_face"]) == (0.0, 0.0)
    assert f"models.reference.load: {directory / 'empty'} is not a whole checkpoint" in found.started["empty"]
