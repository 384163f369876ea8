"""What a checkpoint holds of one rank, as rectangles of whole tensors: the weights, Adam's moments, and its float32 weights.

Where a parameter lies in the whole model is what Megatron's own `sharded_state_dict` says. A distributed optimizer keeps a
stretch of each parameter's elements on each data-parallel rank; such a stretch is up to three rectangles, so a rank writes
and reads what it keeps and nothing else. (Megatron's `fully_reshardable` state is gathered on every data-parallel rank to be
saved, and each of them reads all of it.)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory, is_main_replica
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import ChainedOptimizer

OPTIMIZER = "optimizer.state."
_MASTER, _MOMENTS = "fp32_param", ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Piece:
    """A rectangle of a whole tensor, where this rank keeps it."""

    key: str
    """The whole tensor's name in the checkpoint."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    offset: tuple[int, ...]
    tensor: torch.Tensor
    """Memory that is in use; as many dimensions as `shape`."""
    writes: bool
    """Whether this rank writes it, and no other one that keeps the same."""
    copied: bool = False
    """Whether every data-parallel rank keeps the same."""
    also: tuple[str, ...] = ()
    """Other tensors of the same values. Of those that a checkpoint has, one in float32 is read before others."""
    padded: int | None = None
    """The axis along which the whole tensor may be larger than the one in the checkpoint, with zeros at its end."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """Adam's state of some elements of one parameter."""

    start: int
    end: int
    main: torch.Tensor
    state: Mapping[str, torch.Tensor]
    is_share: bool
    """Whether the data-parallel ranks keep other elements each, instead of all the same."""


def pieces_of(sharded: Mapping[str, Any], optimizer: ChainedOptimizer | None = None, prefix: str = "") -> list[Piece]:
    """All pieces of a model of which Megatron says `sharded`, and of its optimizer, if one is given. `prefix` begins the
    name of every tensor."""
    pieces: list[Piece] = []
    for entry in nested_values(dict(sharded)):
        if not isinstance(entry, ShardedTensor | ShardedTensorFactory):
            continue  # Megatron's modules have extra state, which is empty without Transformer Engine
        kept = _kept(optimizer, entry.data) if optimizer is not None else None
        for part, start in _parts(entry):
            pieces.append(_weights(part, prefix))
            if kept is not None:
                pieces += _optimizer_pieces(part, start, kept, prefix)
    return list(_shared_out(pieces))


def _shared_out(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """The same, but of what every data-parallel rank keeps each writes its share."""
    own, written = parallel_state.get_data_parallel_rank(), [0] * parallel_state.get_data_parallel_world_size()
    for piece in pieces:
        if piece.copied and piece.writes:
            least = written.index(min(written))
            written[least] += piece.tensor.nbytes
            yield replace(piece, writes=least == own)
        else:
            yield piece


def _parts(entry: ShardedTensor | ShardedTensorFactory) -> Iterator[tuple[ShardedTensor, int]]:
    """What a parameter is made of in the whole model, and where in the parameter's elements each part begins."""
    with torch.no_grad():
        parts = [entry] if isinstance(entry, ShardedTensor) else list(nested_values({"": entry.build()}))
    for part in parts:
        start = part.data.storage_offset() - entry.data.storage_offset()
        if not (_share_memory(part.data, entry.data) and part.data.is_contiguous()):
            raise TypeError(f"{part.key} is no contiguous view of its parameter; a checkpoint cannot be read into it")
        yield part, start


def _share_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _weights(part: ShardedTensor, prefix: str) -> Piece:
    also = (f"{prefix}{OPTIMIZER}{_MASTER}.{part.key}",) if part.data.dtype is torch.float32 else ()
    return Piece(
        prefix + part.key, part.global_shape, part.global_offset, _lifted(part.data.detach(), part),
        _is_written(part), copied=True, also=also, padded=_padded_axis(part),
    )  # fmt: skip


def _padded_axis(part: ShardedTensor) -> int | None:
    """The vocabulary's, if the ranks may have padded it."""
    if not part.allow_shape_mismatch:
        return None
    return 1 if part.key.endswith(".lora_embedding_A") else 0


def _is_written(part: ShardedTensor) -> bool:
    """Whether it is the copy to be written of those on other tensor- and pipeline-parallel ranks."""
    return is_main_replica(part.replica_id[:-1])


def _lifted(tensor: torch.Tensor, part: ShardedTensor) -> torch.Tensor:
    """The tensor with the dimensions that only the whole one has, as that of the layers."""
    return tensor.view((1,) * part.prepend_axis_num + tuple(tensor.shape))


def _optimizer_pieces(part: ShardedTensor, at: int, kept: _Kept, prefix: str) -> Iterator[Piece]:
    begin, end = max(kept.start, at), min(kept.end, at + part.data.numel())
    if begin >= end:
        return
    tensors = {name: kept.state[name] for name in _MOMENTS}
    if not _share_memory(kept.main, part.data):
        tensors[_MASTER] = kept.main  # else it is the parameter itself
    lead, axes = part.global_offset[: part.prepend_axis_num], part.global_offset[part.prepend_axis_num :]
    for first, corner, size in rectangles(begin - at, end - at, tuple(part.data.shape)):
        offset = (*lead, *(axis + inside for axis, inside in zip(axes, corner, strict=True)))
        for name, tensor in tensors.items():
            flat = tensor.detach().view(-1)[at + first - kept.start :][: torch.Size(size).numel()]
            yield Piece(
                f"{prefix}{OPTIMIZER}{name}.{part.key}", part.global_shape, offset, _lifted(flat.view(size), part),
                _is_written(part), copied=not kept.is_share, padded=_padded_axis(part),
                also=(prefix + part.key,) if name == _MASTER else (),
            )  # fmt: skip


def rectangles(
    begin: int, end: int, shape: tuple[int, ...]
) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:  # fmt: skip
    """The elements [begin, end) of a contiguous tensor as rectangles: the first element, corner and size of each."""
    if len(shape) == 1:
        yield begin, (begin,), (end - begin,)
        return
    row = torch.Size(shape[1:]).numel()
    while begin < end:
        at, inside = divmod(begin, row)
        if inside == 0 and (rows := (end - begin) // row):
            yield begin, (at, *(0 for _ in shape[1:])), (rows, *shape[1:])
            begin += rows * row
            continue
        stop = min(end, (at + 1) * row)
        for first, corner, size in rectangles(inside, inside + stop - begin, shape[1:]):
            yield at * row + first, (at, *corner), (1, *size)
        begin = stop


def _kept(optimizer: ChainedOptimizer, parameter: torch.Tensor) -> _Kept | None:
    """What the optimizer keeps of a parameter on this rank; None if nothing, as of one that is not trained."""
    for part in optimizer.chained_optimizers:
        if part.is_stub_optimizer:  # of a stage that trains nothing
            continue
        if isinstance(part, DistributedOptimizer):
            if parameter in part.model_param_gbuf_map:
                held = part._get_model_param_range_map(parameter)["param"]
                group, place = part.model_param_group_index_map[parameter]
                main = part.optimizer.param_groups[group]["params"][place]
                return _Kept(held.start, held.end, main, part.optimizer.state[main], True)
        else:
            main = getattr(parameter, "main_param", parameter)
            if main in part.optimizer.state:
                return _Kept(0, parameter.numel(), main, part.optimizer.state[main], False)
    return None
