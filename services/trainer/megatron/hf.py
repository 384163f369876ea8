"""Hugging Face safetensors in and out of a tensor- and pipeline-parallel model, one tensor at a time."""

import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from safetensors import safe_open
from safetensors.torch import save_file

from baton.errors import ConfigError
from services.common.weight_sync.plan import as_matrix
from services.trainer.megatron.family import ModelShape
from services.trainer.megatron.lora.factors import lora_layers
from services.trainer.megatron.lora.merged import merged_weight, unties
from services.trainer.megatron.model import PolicyModel
from services.trainer.megatron.names import NameMap, Place, base_parameters
from services.trainer.megatron.parallel import Layout

SHARD_BYTES = 4 * 1024**3
"""Size at which an export begins its next file."""


class HfTensors:
    """Random access to the tensors of a directory of safetensors files."""

    def __init__(self, directory: Path, fresh: Mapping[str, torch.Tensor] = MappingProxyType({})) -> None:
        """`fresh`: whole tensors to take where the directory lacks them."""
        self._directory, self._fresh = directory, fresh
        self._files: dict[str, Path] = {}
        for path in sorted(directory.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                self._files.update(dict.fromkeys(file.keys(), path))
        if not self._files:
            raise ConfigError(f"{directory} holds no .safetensors files; convert the model to safetensors first")

    def __contains__(self, name: str) -> bool:
        return name in self._files or name in self._fresh

    def get(self, name: str) -> torch.Tensor:
        """A whole tensor. Raises ConfigError if there is none of the name."""
        if name in self._fresh and name not in self._files:
            return self._fresh[name]
        if name not in self._files:
            raise ConfigError(f"{self._directory} lacks the tensor {name}; the model is incomplete or of another kind")
        with safe_open(self._files[name], "pt") as file:
            return file.get_tensor(name)


def source_config(directory: Path) -> dict[str, Any]:
    """A model's config.json."""
    return json.loads((directory / "config.json").read_text())


@torch.no_grad()
def load_hf(
    model: PolicyModel, directory: Path, layout: Layout, fresh: Mapping[str, torch.Tensor] = MappingProxyType({}),
    skip: Collection[str] = (),
) -> None:  # fmt: skip
    """Fills this rank's parameters from a Hugging Face directory, but for those in `skip`; reads only the tensors of its
    pipeline stage. `fresh`: whole tensors to take where the directory lacks them."""
    source, names = HfTensors(directory, fresh), NameMap(model.shape)
    for name, parameter in base_parameters(model):
        if name in skip:
            continue
        places = names.places(name, model.first_layer, layout.tensor_rank, layout.tensor_size)
        tensors = {hf_name: source.get(hf_name) for hf_name in dict.fromkeys(place.name for place in places)}
        matrix = as_matrix(parameter)
        matrix[sum(place.height for place in places) :] = 0  # rows that pad the vocabulary
        for place in places:
            whole = tensors[place.name]
            if tuple(whole.shape) != place.shape:
                raise ConfigError(f"{directory}: {place.name} is {tuple(whole.shape)}, expected {place.shape}")
            place.of(matrix).copy_(as_matrix(whole)[place.rectangle])


@torch.no_grad()
def gather_hf(model: PolicyModel, layout: Layout) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields this pipeline stage's whole tensors under their Hugging Face names, on tensor-parallel rank 0; of weights with
    adapters their sums.

    A collective over the tensor-parallel group: all its ranks iterate; the others get nothing.
    """
    names, adapted = NameMap(model.shape), {f"{name}.weight": layer for name, layer in lora_layers(model)}
    for name, parameter in base_parameters(model):
        if names.is_copy(name):
            continue
        data = merged_weight(adapted[name]) if name in adapted else parameter.data
        shards = _gathered(data, layout) if names.is_sharded(name) else [data]
        if layout.tensor_rank == 0:
            places = [names.places(name, model.first_layer, rank, layout.tensor_size) for rank in range(len(shards))]
            yield from whole_tensors(shards, places).items()
    if model.pre_process and unties(model):
        yield from _untied_head(model, layout)


def _untied_head(model: PolicyModel, layout: Layout) -> Iterator[tuple[str, torch.Tensor]]:
    """The head of a model whose embedding was that, too, until an adapter was added to it."""
    untied = replace(model.shape, tied_embeddings=False)
    shards = _gathered(model.embedding.word_embeddings.weight.data, layout)
    if layout.tensor_rank == 0:
        ranks = range(layout.tensor_size)
        places = [NameMap(untied).places("output_layer.weight", 0, rank, layout.tensor_size) for rank in ranks]
        yield from whole_tensors(shards, places).items()


def whole_tensors(shards: Sequence[torch.Tensor], places: Sequence[Sequence[Place]]) -> dict[str, torch.Tensor]:
    """The Hugging Face tensors that all ranks' shards of one parameter are made of, given what each is made of."""
    whole: dict[str, torch.Tensor] = {}
    for shard, of_shard in zip(shards, places, strict=True):
        for place in of_shard:
            if place.name not in whole:
                whole[place.name] = shard.new_empty(place.shape)
            as_matrix(whole[place.name])[place.rectangle] = place.of(as_matrix(shard))
    return whole


def _gathered(shard: torch.Tensor, layout: Layout) -> list[torch.Tensor]:
    """All ranks' shards, on tensor-parallel rank 0."""
    if layout.tensor_size == 1:
        return [shard]
    group = parallel_state.get_tensor_model_parallel_group()
    shards = [torch.empty_like(shard) for _ in range(layout.tensor_size)] if layout.tensor_rank == 0 else None
    dist.gather(shard.contiguous(), shards, dst=dist.get_global_rank(group, 0), group=group)
    return shards or []


class HfFiles:
    """Safetensors files of a stage, each written once it is large enough."""

    def __init__(self, partial: Path, stage: int = 0) -> None:
        self._partial, self._stage = partial, stage
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes, self._part, self.bytes = 0, 0, 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        self._pending[name] = tensor.cpu().contiguous()
        self._pending_bytes += tensor.nbytes
        self.bytes += tensor.nbytes
        if self._pending_bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what is left."""
        if self._pending:
            file = self._partial / f"model-stage{self._stage:02d}-{self._part:05d}.safetensors"
            save_file(self._pending, file, metadata={"format": "pt"})
        self._pending, self._pending_bytes, self._part = {}, 0, self._part + 1


def export_hf(model: PolicyModel, layout: Layout, partial: Path) -> int:
    """Writes this pipeline stage's safetensors into `partial`. Returns the bytes that this rank wrote.

    A collective over the ranks of data-parallel rank 0; rank 0 calls `finish_export` after every rank has returned. A rank
    that cannot write gathers with the others to the end, and raises then.
    """
    files, problem = HfFiles(partial, layout.pipeline_rank), None
    for name, tensor in gather_hf(model, layout):
        try:
            if problem is None:
                files.add(name, tensor)
        except Exception as error:  # whatever it is: the other ranks go on with what they gather
            problem = error
    if problem is not None:
        raise problem
    files.flush()
    return files.bytes


def finish_export(
    source: Path | None, partial: Path, dtype: torch.dtype, shape: ModelShape, config: dict[str, Any] | None = None
) -> None:
    """Writes the index, and copies config and tokenizer beside the weights; the config, or the one that is given, says the
    weights' `dtype`, and what kind of model they are now."""
    files, total = {}, 0
    for path in sorted(partial.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            files.update(dict.fromkeys(file.keys(), path.name))
        total += path.stat().st_size
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=1, sort_keys=True))
    for path in source.iterdir() if source else ():
        if path.suffix in (".json", ".txt", ".jinja", ".model") and path.name != "model.safetensors.index.json":
            shutil.copyfile(path, partial / path.name)
    config = dict(config or json.loads((partial / "config.json").read_text()))
    if "lm_head.weight" in files:
        config["tie_word_embeddings"] = False
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(dtype).removeprefix("torch.")
    if shape.scalar_head:
        kind = f"{shape.family.capitalize()}ForSequenceClassification"
        config |= {"architectures": [kind], "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    (partial / "config.json").write_text(json.dumps(config, indent=1))
