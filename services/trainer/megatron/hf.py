"""Hugging Face safetensors in and out of a tensor- and pipeline-parallel model, one tensor at a time."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from safetensors import safe_open
from safetensors.torch import save_file

from baton.errors import ConfigError
from services.trainer.megatron.family import ModelShape
from services.trainer.megatron.model import PolicyModel
from services.trainer.megatron.names import NameMap
from services.trainer.megatron.parallel import Layout

SHARD_BYTES = 4 * 1024**3
"""Size at which an export begins its next file."""


class _Checkpoint:
    """Random access to the tensors of a directory of safetensors files."""

    def __init__(self, directory: Path, fresh: Mapping[str, torch.Tensor]) -> None:
        self._directory, self._fresh = directory, fresh
        self._files: dict[str, Path] = {}
        for path in sorted(directory.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                self._files.update(dict.fromkeys(file.keys(), path))
        if not self._files:
            raise ConfigError(f"{directory} holds no .safetensors files; convert the model to safetensors first")

    def get(self, name: str) -> torch.Tensor:
        if name in self._fresh and name not in self._files:
            return self._fresh[name]
        if name not in self._files:
            raise ConfigError(f"{self._directory} lacks the tensor {name}; the model is incomplete or of another kind")
        with safe_open(self._files[name], "pt") as file:
            return file.get_tensor(name)


@torch.no_grad()
def load_hf(
    model: PolicyModel, directory: Path, layout: Layout, fresh: Mapping[str, torch.Tensor] = MappingProxyType({})
) -> None:
    """Fills this rank's parameters from a Hugging Face directory; reads only the tensors of its pipeline stage. `fresh`:
    whole tensors to take where the directory lacks them."""
    source, names = _Checkpoint(directory, fresh), NameMap(model.shape)
    for name, parameter in model.named_parameters():
        rule = names.rule(name, model.first_layer)
        hf_names = rule.hf_names if rule else ("model.embed_tokens.weight",)
        split = rule.split if rule else names.rule("embedding.word_embeddings.weight", 0).split
        shard = split([source.get(hf_name) for hf_name in hf_names], layout.tensor_rank, layout.tensor_size)
        if shard.shape != parameter.shape:
            shapes = f"{tuple(shard.shape)} for {name}, expected {tuple(parameter.shape)}"
            raise ConfigError(f"{directory}: {hf_names} gives {shapes}")
        parameter.copy_(shard)


@torch.no_grad()
def gather_hf(model: PolicyModel, layout: Layout) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields this pipeline stage's whole tensors under their Hugging Face names, on tensor-parallel rank 0.

    A collective over the tensor-parallel group: all its ranks iterate; the others get nothing.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    root = dist.get_global_rank(group, 0)
    for rule, parameter in NameMap(model.shape).rules(model.named_parameters(), model.first_layer):
        shards = [parameter.data]
        if layout.tensor_size > 1:
            on_root = layout.tensor_rank == 0
            shards = [torch.empty_like(parameter) for _ in range(layout.tensor_size)] if on_root else None
            dist.gather(parameter.data.contiguous(), shards, dst=root, group=group)
        if layout.tensor_rank == 0:
            yield from zip(rule.hf_names, rule.merge(shards), strict=True)


def hf_shapes(model: PolicyModel, layout: Layout) -> list[tuple[str, tuple[int, ...]]]:
    """Names and whole shapes of what `gather_hf` yields, without communication."""
    answer = []
    for rule, parameter in NameMap(model.shape).rules(model.named_parameters(), model.first_layer):
        shards = [torch.empty(parameter.shape, device="meta")] * layout.tensor_size
        answer += [(name, tuple(t.shape)) for name, t in zip(rule.hf_names, rule.merge(shards), strict=True)]
    return answer


def export_hf(model: PolicyModel, layout: Layout, partial: Path) -> int:
    """Writes this pipeline stage's safetensors into `partial`. Returns the bytes that this rank wrote.

    A collective over the ranks of data-parallel rank 0; rank 0 calls `finish_export` after every rank has returned.
    """
    written, pending, pending_bytes, part = 0, {}, 0, 0

    def flush() -> None:
        nonlocal pending, pending_bytes, part
        if pending:
            file = partial / f"model-stage{layout.pipeline_rank:02d}-{part:05d}.safetensors"
            save_file(pending, file, metadata={"format": "pt"})
        pending, pending_bytes, part = {}, 0, part + 1

    for name, tensor in gather_hf(model, layout):
        pending[name] = tensor.cpu().contiguous()
        pending_bytes += tensor.nbytes
        written += tensor.nbytes
        if pending_bytes >= SHARD_BYTES:
            flush()
    flush()
    return written


def finish_export(source: Path, partial: Path, dtype: torch.dtype, shape: ModelShape) -> None:
    """Writes the index, and copies config and tokenizer beside the weights; the config says the weights' `dtype`, and what
    kind of model they are now."""
    files, total = {}, 0
    for path in sorted(partial.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            files.update(dict.fromkeys(file.keys(), path.name))
        total += path.stat().st_size
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=1, sort_keys=True))
    for path in source.iterdir():
        if path.suffix in (".json", ".txt", ".jinja", ".model") and path.name != "model.safetensors.index.json":
            shutil.copyfile(path, partial / path.name)
    config = json.loads((partial / "config.json").read_text())
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(dtype).removeprefix("torch.")
    if shape.scalar_head:
        kind = f"{shape.family.capitalize()}ForSequenceClassification"
        config |= {"architectures": [kind], "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    (partial / "config.json").write_text(json.dumps(config, indent=1))
