"""Whatever rectangles a tensor was written in, any other rectangle is read exactly, and no byte beside it."""

import random
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from baton.checkpoint_files import FORMAT, faults
from baton.errors import InvalidRequestError, NotFoundError
from services.trainer.megatron import checkpoint_reader
from services.trainer.megatron.checkpoint_pieces import Piece, rectangles
from services.trainer.megatron.checkpoint_reader import CheckpointReader
from services.trainer.megatron.checkpoint_writer import write_books, write_rank_file

WHOLE = {
    "vector": torch.arange(37.0),
    "matrix": torch.arange(12 * 10, dtype=torch.float32).view(12, 10),
    "layers": torch.arange(3 * 8 * 6, dtype=torch.float32).view(3, 8, 6).bfloat16(),
}


def piece(name: str, low: tuple[int, ...], size: tuple[int, ...], tensor: torch.Tensor | None = None, **kind) -> Piece:
    """A rectangle of WHOLE, with its values or with memory for them."""
    if tensor is None:
        tensor = torch.full(size, torch.nan, dtype=WHOLE[name].dtype)
    return Piece(name, tuple(WHOLE[name].shape), low, tensor, writes=True, **kind)


def values(name: str, low: tuple[int, ...], size: tuple[int, ...]) -> torch.Tensor:
    return WHOLE[name][tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))].clone()


def cut(shape: tuple[int, ...], numbers: random.Random) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Corner and size of rectangles that make up the shape, cut at random places of random axes."""
    whole = [((0,) * len(shape), shape)]
    for _ in range(6):
        low, size = whole.pop(numbers.randrange(len(whole)))
        axis = numbers.randrange(len(shape))
        at = numbers.randint(0, size[axis])
        for start, extent in ((0, at), (at, size[axis] - at)):
            if extent:
                whole.append((_with(low, axis, low[axis] + start), _with(size, axis, extent)))
    return whole


def _with(values: tuple[int, ...], axis: int, value: int) -> tuple[int, ...]:
    return (*values[:axis], value, *values[axis + 1 :])


def write(path: Path, seed: int = 0, leave_out: int = 0) -> Path:
    """WHOLE in random rectangles, over the files of three ranks."""
    numbers, ranks = random.Random(seed), [[], [], []]
    for name, tensor in WHOLE.items():
        for low, size in cut(tuple(tensor.shape), numbers):
            numbers.choice(ranks).append(piece(name, low, size, values(name, low, size)))
    path.mkdir()
    files = [write_rank_file(own[: len(own) - leave_out], path, rank) for rank, own in enumerate(ranks)]
    write_books(files, path, {"global_step": 5, "format": FORMAT})
    return path


@pytest.mark.parametrize("seed", range(8))
def test_any_rectangle_is_read_exactly_with_no_byte_more_than_is_kept(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_reader, "BUFFER_BYTES", 40)  # so that what is read must be cut
    reader, numbers, pieces = CheckpointReader(write(tmp_path / "x", seed)), random.Random(seed), []
    for name, tensor in WHOLE.items():
        for _ in range(10):
            low = tuple(numbers.randrange(extent) for extent in tensor.shape)
            size = tuple(numbers.randint(1, extent - a) for a, extent in zip(low, tensor.shape, strict=True))
            pieces.append(piece(name, low, size))
    books = reader.read([]).read_bytes
    report = reader.read(pieces)
    for one in pieces:
        assert torch.equal(one.tensor, values(one.key, one.offset, tuple(one.tensor.shape)))
    assert report.kept_bytes == sum(one.tensor.nbytes for one in pieces)
    assert report.read_bytes == report.kept_bytes + books


def test_pieces_of_another_format_and_in_memory_with_gaps_are_filled_too(tmp_path: Path) -> None:
    reader = CheckpointReader(write(tmp_path / "x"))
    gaps = torch.zeros(12, 20, dtype=torch.float64)
    reader.read([piece("matrix", (0, 0), (12, 10), gaps[:, ::2])])
    assert torch.equal(gaps[:, ::2], WHOLE["matrix"].double())
    assert not gaps[:, 1::2].any()


def test_of_a_tensor_that_may_be_padded_what_the_checkpoint_lacks_is_zero(tmp_path: Path) -> None:
    reader = CheckpointReader(write(tmp_path / "x"))
    padded = Piece("matrix", (14, 10), (10, 0), torch.full((4, 10), 7.0), writes=True, padded=0)
    wider = Piece("matrix", (12, 13), (0, 8), torch.full((12, 5), 7.0), writes=True, padded=1)
    reader.read([padded, wider])
    assert torch.equal(padded.tensor[:2], WHOLE["matrix"][10:])
    assert not padded.tensor[2:].any()
    assert torch.equal(wider.tensor[:, :2], WHOLE["matrix"][:, 8:])
    assert not wider.tensor[:, 2:].any()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Piece("matrix", (12, 11), (0, 0), torch.zeros(12, 11), True), r"matrix is \(12, 10\) there, \(12, 11\) here"),
        (Piece("other", (3,), (0,), torch.zeros(3), True), "has no tensor other: it is a checkpoint of another model"),
    ],
)
def test_what_the_checkpoint_does_not_have_is_named_before_anything_is_filled(
    wanted: Piece, message: str, tmp_path: Path
) -> None:
    reader, first = CheckpointReader(write(tmp_path / "x")), piece("vector", (0,), (37,))
    with pytest.raises(InvalidRequestError, match=message):
        reader.read([first, wanted])
    assert first.tensor.isnan().all()


def test_a_part_that_no_file_has_is_an_error(tmp_path: Path) -> None:
    reader = CheckpointReader(write(tmp_path / "x", leave_out=1))
    with pytest.raises(InvalidRequestError, match="lacks a part of"):
        reader.read([piece(name, (0,) * tensor.dim(), tuple(tensor.shape)) for name, tensor in WHOLE.items()])


def test_torchs_own_reader_finds_the_same_tensors(tmp_path: Path) -> None:
    state = {name: torch.zeros_like(tensor) for name, tensor in WHOLE.items()}
    dcp.load(state, checkpoint_id=write(tmp_path / "x"), no_dist=True)
    for name, tensor in WHOLE.items():
        assert torch.equal(state[name], tensor), name


def test_a_missing_or_torn_file_and_a_damaged_index_are_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "x")
    file = path / "__1_0.distcp"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(InvalidRequestError, match=f"{file} has {len(content) - 1} bytes, and {len(content)} were written"):
        CheckpointReader(path)
    file.unlink()
    with pytest.raises(NotFoundError, match=f"{path} lacks its file {file.name}"):
        CheckpointReader(path)
    file.write_bytes(content)
    index = path / "index.json"
    index.write_text(index.read_text().replace("37", "36", 1))
    with pytest.raises(InvalidRequestError, match=f"{index} is damaged"):
        CheckpointReader(path)


def test_a_marker_that_is_not_as_it_was_written_is_refused_by_name(tmp_path: Path) -> None:
    marker = write(tmp_path / "x") / "baton.json"
    marker.write_text(marker.read_text().replace('"global_step": 5', '"global_step": 4'))
    with pytest.raises(InvalidRequestError, match=f"{marker} is damaged, as `baton ckpt verify` says too"):
        CheckpointReader(tmp_path / "x")


def test_verifying_names_each_file_that_is_torn_changed_or_missing_and_no_other(tmp_path: Path) -> None:
    path, numbers = write(tmp_path / "x"), random.Random(0)
    assert list(faults(path)) == []
    names = sorted(file.name for file in path.iterdir())
    assert len(names) == 9
    for name in names:
        file = path / name
        content = file.read_bytes()
        changed = bytearray(content)
        changed[numbers.randrange(len(content))] ^= 1 << numbers.randrange(8)
        for harm in (bytes(changed), content[: len(content) // 2], None):
            file.unlink()
            if harm is not None:
                file.write_bytes(harm)
            assert [fault.partition(":")[0] for fault in faults(path)] == [name]
            file.write_bytes(content)
    assert list(faults(path)) == []


def test_consecutive_elements_are_up_to_three_rectangles_of_a_matrix() -> None:
    shape, elements = (5, 4), torch.arange(20).view(5, 4)
    for begin in range(20):
        for end in range(begin + 1, 21):
            found = list(rectangles(begin, end, shape))
            assert len(found) <= 3
            for first, corner, size in found:
                whole = elements[tuple(slice(a, a + n) for a, n in zip(corner, size, strict=True))]
                assert whole.flatten().tolist() == list(range(first, first + whole.numel()))
            assert [first for first, _, _ in found] == sorted(first for first, _, _ in found)
            assert sum(torch.Size(size).numel() for _, _, size in found) == end - begin
    assert list(rectangles(3, 9, (20,))) == [(3, (3,), (6,))]
