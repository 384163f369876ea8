"""Where a receiver puts the parts that arrive: into regions of its own parameters, or whole tensors to a loader."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from baton.errors import DigestMismatchError, InvalidRequestError
from services.common.weight_sync.digest import BITS
from services.common.weight_sync.plan import Bucket, Part, Region, as_matrix
from services.common.weight_sync.replay import Replay, copy
from services.common.weight_sync.transfer import Lane

Load = Callable[[list[tuple[str, torch.Tensor]]], None]
"""Takes whole tensors under their Hugging Face names."""


def overlap(part: Part, region: Region) -> Part | None:
    """The rectangle of a part that a region holds too."""
    rows = max(part.rows[0], region.part.rows[0]), min(part.rows[1], region.part.rows[1])
    columns = max(part.columns[0], region.part.columns[0]), min(part.columns[1], region.part.columns[1])
    return replace(part, rows=rows, columns=columns) if rows[0] < rows[1] and columns[0] < columns[1] else None


def within(matrix: torch.Tensor, whole: Part, part: Part) -> torch.Tensor:
    """The rectangle `part` of a matrix that holds `whole`."""
    row, column = part.rows[0] - whole.rows[0], part.columns[0] - whole.columns[0]
    return matrix[row : row + part.size[0], column : column + part.size[1]]


class Copies:
    """Which rectangles of which slots go where; made once for a group, replayed at every update."""

    def __init__(self, plans: Sequence[Sequence[Bucket]], regions: Sequence[Region]) -> None:
        """One plan for each lane. Raises InvalidRequestError if the plans lack something that the regions hold."""
        self._by_name: dict[str, list[Region]] = {}
        for region in regions:
            self._by_name.setdefault(region.part.name, []).append(region)
        self._copies = [[list(self._of(bucket)) for bucket in buckets] for buckets in plans]
        wanted = sum(region.part.numel for region in regions)
        copied = sum(target.numel() for lane in self._copies for bucket in lane for _, _, target in bucket)
        if copied != wanted:
            raise InvalidRequestError(
                f"the update has {copied} of the {wanted} elements that this engine's parameters hold; trainer and rollout "
                "must run the same model"
            )

    def _of(self, bucket: Bucket) -> Iterator[tuple[int, Part, torch.Tensor]]:
        for number, slot in enumerate(bucket.slots):
            for region in self._by_name.get(slot.part.name, ()):
                if both := overlap(slot.part, region):
                    yield number, both, within(region.matrix, region.part, both)

    def of(self, lane: int, index: int) -> list[tuple[int, Part, torch.Tensor]]:
        """(slot, rectangle, target) of one bucket."""
        return self._copies[lane][index]


class DirectSink:
    """Copies parts straight into parameters."""

    def __init__(self, copies: Copies, lanes: Sequence[Lane], device: torch.device) -> None:
        """`device` is the parameters'."""
        self._replays = [
            Replay(
                [
                    partial(_copy, _batched(_pairs(copies, bucket, number, index, views)))
                    for index, (bucket, views) in enumerate(zip(lane.buckets, lane.views, strict=True))
                ],
                device if lane.device == device else lane.device,  # a copy from the CPU is none that a graph can do
            )
            for number, lane in enumerate(lanes)
        ]

    def load(self, lane: int, index: int, views: Sequence[torch.Tensor]) -> None:
        """From the lane's own views."""
        self._replays[lane].run(index)

    def record(self) -> None:
        """From now on by graphs, on a GPU."""
        for replay in self._replays:
            replay.record()


class Comparison:
    """Compares parts with what is in the parameters."""

    def __init__(self, copies: Copies | None, plans: Sequence[Sequence[Bucket]]) -> None:
        """Without copies nothing is compared, and `finish` says so."""
        self._copies, self._plans = copies, plans
        self._unequal: list[tuple[str, torch.Tensor]] = []
        self._bytes = 0

    def load(self, lane: int, index: int, views: Sequence[torch.Tensor]) -> None:
        """Takes the parts of one bucket."""
        if self._copies is None:
            return
        for name, target, source in _pairs(self._copies, self._plans[lane][index], lane, index, views):
            self._unequal.append((name, (_bits(target) != _bits(source.to(target.dtype))).any()))
            self._bytes += target.nbytes

    def finish(self) -> int:
        """Bytes of parameters that were compared. Raises DigestMismatchError, naming the tensors that differ."""
        names = sorted({name for name, unequal in self._unequal if unequal})
        if names:
            raise DigestMismatchError(
                f"{len(names)} tensors in the engine are not what was sent, bit for bit: {', '.join(names[:3])}; the layout "
                "of its parameters has changed, or its memory was written to"
            )
        return self._bytes


class LoaderSink:
    """Puts parts together to whole tensors, and hands those to a loader that may keep them."""

    def __init__(self, load: Load, plans: Sequence[Sequence[Bucket]]) -> None:
        self._load, self._plans = load, plans
        self._whole: dict[str, torch.Tensor] = {}
        self._missing: dict[str, int] = {}

    @torch.no_grad()
    def load(self, lane: int, index: int, views: Sequence[torch.Tensor]) -> None:
        """Loads the tensors that are whole with this bucket."""
        finished = []
        for slot, view in zip(self._plans[lane][index].slots, views, strict=True):
            part = slot.part
            if part.name not in self._whole:
                self._whole[part.name] = torch.empty(part.shape, dtype=part.dtype, device=view.device)
                self._missing[part.name] = self._whole[part.name].numel()
            whole = as_matrix(self._whole[part.name])
            whole[part.rows[0] : part.rows[1], part.columns[0] : part.columns[1]] = view
            self._missing[part.name] -= part.numel
            if not self._missing[part.name]:
                finished.append((part.name, self._whole.pop(part.name)))
        if finished:
            self._load(finished)

    def record(self) -> None:
        """Nothing is the same the next time."""


def _pairs(
    copies: Copies, bucket: Bucket, lane: int, index: int, views: Sequence[torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:  # fmt: skip
    """(name, target, source) of one bucket."""
    for number, part, target in copies.of(lane, index):
        yield part.name, target, within(views[number], bucket.slots[number].part, part)


def _copy(batches: Sequence[tuple[list[torch.Tensor], list[torch.Tensor]]]) -> None:
    for targets, sources in batches:
        copy(targets, sources)


def _batched(
    pairs: Iterator[tuple[str, torch.Tensor, torch.Tensor]],
) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Targets and sources in lists that are copied at once: contiguous ones, which take one kernel, and the others."""
    batches: tuple[tuple[list, list], ...] = (([], []), ([], []))
    for _, target, source in pairs:
        targets, sources = batches[target.is_contiguous() and source.is_contiguous()]
        targets.append(target)
        sources.append(source)
    return [batch for batch in batches if batch[0]]


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(BITS[tensor.dtype.itemsize])
