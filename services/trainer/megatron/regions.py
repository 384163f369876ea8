"""Which rectangles of Hugging Face tensors this rank's parameters hold: what it sends, or takes as a static replica."""

from collections.abc import Iterator

import torch

from services.common.weight_sync.plan import Part, Region, as_matrix
from services.trainer.megatron.lora.merged import merged_weights
from services.trainer.megatron.model import PolicyModel
from services.trainer.megatron.names import NameMap, base_parameters
from services.trainer.megatron.parallel import Layout


def held(model: PolicyModel, layout: Layout, dtype: torch.dtype) -> Iterator[Region]:
    """Every parameter, copies of the tied embedding too; parts travel as `dtype`."""
    for name, parameter in base_parameters(model):
        yield from _of(model, layout, name, parameter.data, dtype)


def sent(model: PolicyModel, layout: Layout, dtype: torch.dtype) -> Iterator[Region]:
    """What this rank sends, so that all ranks of a data-parallel replica together send every element once. Of weights with
    adapters it is their sums, in memory of their own, which `lora.merged.merged_weights` makes anew before every sending.
    Raises ConfigError if they cannot be merged."""
    names, merged = NameMap(model.shape), merged_weights(model)
    for name, parameter in base_parameters(model):
        if not names.is_copy(name) and (names.is_sharded(name) or layout.tensor_rank == 0):
            yield from _of(model, layout, name, merged.get(name, parameter.data), dtype)


def sent_base(model: PolicyModel, layout: Layout, dtype: torch.dtype) -> Iterator[Region]:
    """As `sent`, but the weights below adapters, which never change."""
    names = NameMap(model.shape)
    for name, parameter in base_parameters(model):
        if not names.is_copy(name) and (names.is_sharded(name) or layout.tensor_rank == 0):
            yield from _of(model, layout, name, parameter.data, dtype)


def _of(model: PolicyModel, layout: Layout, name: str, data: torch.Tensor, dtype: torch.dtype) -> Iterator[Region]:
    matrix = as_matrix(data)
    for place in NameMap(model.shape).places(name, model.first_layer, layout.tensor_rank, layout.tensor_size):
        yield Region(Part(place.name, dtype, place.shape, place.rows, place.columns), place.of(matrix))
