"""Hugging Face files into a checkpoint and back, one parameter at a time: by one process, without a process group.

A whole tensor of a checkpoint is the parameter of a model on one rank, those of all layers one above the other.
"""

import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from baton.checkpoint_files import FORMAT
from baton.errors import ConfigError, InvalidRequestError
from services.common.weight_sync.plan import as_matrix
from services.trainer import whole_directory
from services.trainer.megatron.checkpoint_pieces import Piece
from services.trainer.megatron.checkpoint_reader import CheckpointReader
from services.trainer.megatron.checkpoint_writer import write_books, write_rank_file
from services.trainer.megatron.family import ModelShape
from services.trainer.megatron.heads import SCORE, Head
from services.trainer.megatron.hf import HfFiles, HfTensors, finish_export, source_config, whole_tensors
from services.trainer.megatron.names import NameMap, Place

_VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")
_KEYS = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}
"""Parameters of a layer that have another name in Megatron's checkpoints, for the sake of its fused layers."""


def import_hf(source: Path, target: Path, role: str) -> int:
    """Writes a checkpoint of `role` that holds the weights of a Hugging Face directory, in its number format, and no
    optimizer's state. Returns their size in bytes. Raises ConfigError for a model that is not supported or not whole,
    InvalidRequestError if `target` is there already or cannot be written."""
    shape, tensors = ModelShape.read(source), HfTensors(source)
    head: Head = "logprobs" if SCORE not in tensors else "scores" if role in ("reward", "ppo_policy") else "values"
    partial = _begin(target)
    try:
        file = write_rank_file(_imported(_whole_shape(shape, head), tensors), partial, 0)
        dtype = next(chunk.dtype for chunk in file.chunks)
        known = {
            "prefix": "", "head": head, "shape": asdict(shape), "config": source_config(source), "source": str(source),
            "dtype": dtype, "updates": None, "schedule": None, "lora": {},
        }  # fmt: skip
        layout = {"tensor": 1, "pipeline": 1, "data": 1}
        marker = {"global_step": 0, "format": FORMAT, "lineage": uuid.uuid4().hex, "layout": layout, "roles": {role: known}}
        write_books([file], partial, marker)
        whole_directory.finish(target)
    except OSError as error:
        raise InvalidRequestError(f"cannot write {target}: {error}; nothing of it is left") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return file.bytes


def export_hf_directory(path: Path, target: Path, role: str | None = None, model: Path | None = None) -> int:
    """Writes the model of one role of a checkpoint as a Hugging Face directory, in its number format. `model`: where the
    tokenizer is; None: where the run had it, if that is still there. Returns the weights' size in bytes.

    Raises InvalidRequestError if the checkpoint has no such role, or `target` is there already or cannot be written.
    """
    reader = CheckpointReader(path)
    roles = reader.marker["roles"]
    role = role or next(iter(roles))
    if role not in roles:
        raise InvalidRequestError(f"{path} is a checkpoint of {', '.join(roles)}, and not of {role}; choose one of those")
    known = roles[role]
    require_weights(path, role, known)
    shape, source = _whole_shape(ModelShape(**known["shape"]), known["head"]), model or Path(known["source"])
    dtype = reader.tensors[known["prefix"] + _VOCABULARY[0]][1]
    partial = _begin(target)
    try:
        files = HfFiles(partial)
        for name, tensor in _exported(reader, shape, known["prefix"]):
            files.add(name, tensor)
        files.flush()
        finish_export(source if source.is_dir() else None, partial, dtype, shape, known["config"])
        whole_directory.finish(target)
    except (OSError, SafetensorError) as error:
        raise InvalidRequestError(f"cannot write {target}: {error}; nothing of it is left") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return files.bytes


def require_weights(path: Path, role: str, known: Mapping[str, Any]) -> None:
    """Raises InvalidRequestError for a role of which a checkpoint holds adapters alone."""
    if known["lora"].get("checkpoint") == "adapter":
        raise InvalidRequestError(
            f"{path} holds the adapters of {role} alone, and not the weights below them, {known['source']}: take the run's "
            "export, which has both, or resume the run under the other layout"
        )


def _begin(target: Path) -> Path:
    if target.exists():
        raise InvalidRequestError(f"{target} is there already, and nothing was written: remove it, or choose another name")
    return whole_directory.begin(target, empty=True)


def _whole_shape(shape: ModelShape, head: Head) -> ModelShape:
    return shape if head == "logprobs" else replace(shape, tied_embeddings=False, scalar_head=True)


def _parameters(shape: ModelShape) -> Iterator[tuple[Piece, list[Place]]]:
    """Each parameter of the model on one rank, without values, and what it is made of."""
    names = NameMap(shape)
    for name in names.parameters():
        places = names.places(name, 0, 0, 1)
        height = sum(place.height for place in places)
        size = (height, *places[0].shape[1:])
        key, layer, outer = name, (), ()
        if name.startswith("decoder.layers."):
            number, _, rest = name.removeprefix("decoder.layers.").partition(".")
            key, layer, outer = f"decoder.layers.{_KEYS.get(rest, rest)}", (int(number),), (shape.num_layers,)
        empty = torch.empty((*(1 for _ in outer), *size), device="meta")
        offset = (*layer, *(0 for _ in size))
        yield Piece(key, (*outer, *size), offset, empty, writes=True, padded=0 if name in _VOCABULARY else None), places


def _imported(shape: ModelShape, tensors: HfTensors) -> Iterator[Piece]:
    dtypes: dict[str, torch.dtype] = {}
    for piece, places in _parameters(shape):
        parts = {name: tensors.get(name) for name in dict.fromkeys(place.name for place in places)}
        for name, part in parts.items():
            expected = next(place.shape for place in places if place.name == name)
            if tuple(part.shape) != expected:
                raise ConfigError(f"the model's {name} is {tuple(part.shape)}, and its config.json says {expected}")
            if part.dtype is not dtypes.setdefault(piece.key, part.dtype):
                raise ConfigError(
                    f"the model's {name} is in {part.dtype}, others in {dtypes[piece.key]}; save it in one format"
                )
        tensor = torch.empty(piece.tensor.shape, dtype=dtypes[piece.key])
        for place in places:
            place.of(as_matrix(_of_layer(tensor, places))).copy_(as_matrix(parts[place.name])[place.rectangle])
        yield replace(piece, tensor=tensor)


def _exported(reader: CheckpointReader, shape: ModelShape, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    for empty, places in _parameters(shape):
        key = prefix + empty.key
        if key not in reader.tensors:
            raise InvalidRequestError(f"{reader.path} has no tensor {key}: it does not hold the weights of a whole model")
        piece = replace(empty, key=key, tensor=torch.empty(empty.tensor.shape, dtype=reader.tensors[key][1]))
        reader.read([piece])
        yield from whole_tensors([_of_layer(piece.tensor, places)], [places]).items()


def _of_layer(tensor: torch.Tensor, places: list[Place]) -> torch.Tensor:
    """A parameter without the dimension of the layers."""
    return tensor.view(tensor.shape[tensor.dim() - len(places[0].shape) :])
