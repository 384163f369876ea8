"""Which Hugging Face projections a layer's weight is made of, and which part of each a rank holds.

Megatron fuses q, k and v, and gate and up, into one weight. Each has factors of its own, as it has in PEFT and in vLLM.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from services.trainer.megatron.model import PolicyModel
from services.trainer.megatron.names import NameMap


@dataclass(frozen=True, slots=True)
class Projection:
    """A Hugging Face module with one weight, and the rectangle of that which this rank holds."""

    name: str
    """As `model.layers.3.self_attn.q_proj`."""
    shape: tuple[int, int]
    """Of the whole weight: outputs and inputs; of an embedding: tokens and hidden size."""
    rows: tuple[int, int]
    columns: tuple[int, int]
    height: int
    """Rows here, with those that pad a vocabulary."""

    @property
    def leaf(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]


class Makeup(NamedTuple):
    """What a layer's weight is made of: `groups` times a block of rows of each projection, in their order."""

    projections: tuple[Projection, ...]
    groups: int


def makeup_of(model: nn.Module, name: str, layer: nn.Module) -> Makeup:
    """Of the layer `name` of `model`. In another model than Baton's own a layer is one projection of its own name."""
    if not isinstance(model, PolicyModel):
        return Makeup((_alone(name, layer),), 1)
    rank, size = _place_of(layer)
    by_name: dict[str, list] = {}
    for place in NameMap(model.shape).places(f"{name}.weight", model.first_layer, rank, size):
        by_name.setdefault(place.name.removesuffix(".weight"), []).append(place)
    single = len(by_name) == 1
    projections = [
        Projection(
            hf_name, places[0].shape, (places[0].rows[0], places[-1].rows[1]), places[0].columns,
            len(layer.weight) if single else sum(place.height for place in places),
        )
        for hf_name, places in by_name.items()
    ]  # fmt: skip
    return Makeup(tuple(projections), len(next(iter(by_name.values()))))


def _place_of(layer: nn.Module) -> tuple[int, int]:
    """Rank and size of the layer's tensor-parallel group; a layer of plain torch has none."""
    group = getattr(layer, "tp_group", None)
    return (group.rank(), group.size()) if group is not None else (0, 1)


def _alone(name: str, layer: nn.Module) -> Projection:
    rank, size = _place_of(layer)
    height, width = layer.weight.shape
    if getattr(layer, "input_size_per_partition", None) == width and size > 1:  # row parallel: divided by inputs
        return Projection(name, (height, width * size), (0, height), (rank * width, (rank + 1) * width), height)
    return Projection(name, (height * size, width), (rank * height, (rank + 1) * height), (0, width), height)
