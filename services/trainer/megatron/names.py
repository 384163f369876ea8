"""Where each Hugging Face tensor lies in Megatron-Core's parameters, as rectangles: pure data, for any rank.

Megatron fuses q, k, v into `linear_qkv`, one block [q heads of the group, k, v] per key/value head, and gate and up into
`linear_fc1`, [gate shard, up shard] on every rank. Everything else differs by name only.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from services.trainer.megatron.family import ModelShape


@dataclass(frozen=True, slots=True)
class Place:
    """A rectangle of one Hugging Face tensor, seen as a matrix (a vector is one column), and the rows of a rank's parameter
    that it fills, over all their columns."""

    name: str
    shape: tuple[int, ...]
    """Of the whole tensor."""
    rows: tuple[int, int]
    columns: tuple[int, int]
    at: int
    """The parameter's first row."""

    @property
    def height(self) -> int:
        """Rows of the rectangle."""
        return self.rows[1] - self.rows[0]

    @property
    def rectangle(self) -> tuple[slice, slice]:
        """The index of it in the whole tensor's matrix."""
        return slice(*self.rows), slice(*self.columns)

    def of(self, matrix: torch.Tensor) -> torch.Tensor:
        """It, as a view of the parameter's matrix."""
        return matrix[self.at : self.at + self.height]


Places = Callable[[int, int], list[Place]]
"""(tensor-parallel rank, their number) -> what that rank's parameter is made of."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One parameter's places."""

    places: Places
    sharded: bool
    """Whether each rank holds something else; if not, all hold the same."""


def _columns(shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) > 1 else 1


def _replicated(name: str, *shape: int) -> Rule:
    return Rule(lambda rank, size: [Place(name, shape, (0, shape[0]), (0, _columns(shape)), 0)], sharded=False)


def _by_rows(*tensors: tuple[str, tuple[int, ...]]) -> Rule:
    """Every tensor's share of rows, one below the other."""

    def places(rank: int, size: int) -> list[Place]:
        answer, at = [], 0
        for name, shape in tensors:
            share = shape[0] // size
            answer.append(Place(name, shape, (rank * share, (rank + 1) * share), (0, _columns(shape)), at))
            at += share
        return answer

    return Rule(places, sharded=True)


def _by_columns(name: str, rows: int, columns: int) -> Rule:
    def places(rank: int, size: int) -> list[Place]:
        share = columns // size
        return [Place(name, (rows, columns), (0, rows), (rank * share, (rank + 1) * share), 0)]

    return Rule(places, sharded=True)


def _vocabulary(name: str, rows: int, columns: int) -> Rule:
    """As by rows; where the rows do not divide, the last rank's last rows are nothing's."""

    def places(rank: int, size: int) -> list[Place]:
        share = -(-rows // size)
        held = min(rank * share, rows), min((rank + 1) * share, rows)
        return [Place(name, (rows, columns), held, (0, columns), 0)]

    return Rule(places, sharded=True)


def _qkv(shape: ModelShape, kind: str, *columns: int) -> Rule:
    groups, d = shape.num_kv_heads, shape.head_dim
    heights = {"q": shape.num_heads // groups * d, "k": d, "v": d}  # of one group's blocks

    def places(rank: int, size: int) -> list[Place]:
        answer, at = [], 0
        for group in range(rank * groups // size, (rank + 1) * groups // size):
            for letter, height in heights.items():
                whole = (groups * height, *columns)
                rows = (group * height, (group + 1) * height)
                answer.append(Place(f"self_attn.{letter}_proj.{kind}", whole, rows, (0, _columns(whole)), at))
                at += height
        return answer

    return Rule(places, sharded=True)


def base_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The model's own parameters, without the factors of adapters (`lora/`)."""
    return ((name, parameter) for name, parameter in model.named_parameters() if ".lora." not in name)


class NameMap:
    """Finds the rule of each Megatron parameter of one model."""

    def __init__(self, shape: ModelShape) -> None:
        self._tied, self._layers = shape.tied_embeddings, shape.num_layers
        self._absent = set() if shape.qkv_bias else {"self_attention.linear_qkv.bias"}
        if not shape.qk_norm:
            self._absent |= {f"self_attention.{letter}_layernorm.weight" for letter in "qk"}
        h, f, v = shape.hidden_size, shape.ffn_size, shape.vocab_size
        head = _replicated("score.weight", 1, h) if shape.scalar_head else _vocabulary("lm_head.weight", v, h)
        self._outer = {
            "embedding.word_embeddings.weight": _vocabulary("model.embed_tokens.weight", v, h),
            "decoder.final_layernorm.weight": _replicated("model.norm.weight", h),
            "output_layer.weight": head,
        }
        self._inner = {
            "input_layernorm.weight": _replicated("input_layernorm.weight", h),
            "self_attention.linear_qkv.weight": _qkv(shape, "weight", h),
            "self_attention.linear_qkv.bias": _qkv(shape, "bias"),
            "self_attention.q_layernorm.weight": _replicated("self_attn.q_norm.weight", shape.head_dim),
            "self_attention.k_layernorm.weight": _replicated("self_attn.k_norm.weight", shape.head_dim),
            "self_attention.linear_proj.weight": _by_columns("self_attn.o_proj.weight", h, shape.num_heads * shape.head_dim),
            "pre_mlp_layernorm.weight": _replicated("post_attention_layernorm.weight", h),
            "mlp.linear_fc1.weight": _by_rows(("mlp.gate_proj.weight", (f, h)), ("mlp.up_proj.weight", (f, h))),
            "mlp.linear_fc2.weight": _by_columns("mlp.down_proj.weight", h, f),
        }

    def parameters(self) -> Iterator[str]:
        """The names of the whole model's parameters on a single rank, in the order of its layers."""
        for name in self._outer:
            if not self.is_copy(name):
                yield name
        for layer in range(self._layers):
            for name in self._inner:
                if name not in self._absent:
                    yield f"decoder.layers.{layer}.{name}"

    def is_copy(self, name: str) -> bool:
        """Whether a parameter is the last stage's copy of the tied embedding, and no tensor of its own."""
        return name == "output_layer.weight" and self._tied

    def is_sharded(self, name: str) -> bool:
        """Whether each tensor-parallel rank holds something else of it. Raises KeyError for an unknown parameter."""
        return self._rule(name)[0].sharded

    def places(self, name: str, first_layer: int, rank: int, size: int) -> list[Place]:
        """What a stage-local parameter of one tensor-parallel rank is made of, in the order of its rows; for a copy, the
        embedding's. `first_layer`: the stage's first layer in the whole model. Raises KeyError for an unknown one."""
        rule, layer = self._rule(name)
        prefix = "" if layer is None else f"model.layers.{layer + first_layer}."
        return [
            Place(prefix + place.name, place.shape, place.rows, place.columns, place.at) for place in rule.places(rank, size)
        ]

    def _rule(self, name: str) -> tuple[Rule, int | None]:
        if self.is_copy(name):
            name = "embedding.word_embeddings.weight"
        if name in self._outer:
            return self._outer[name], None
        match = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", name)
        if match is None or match[2] not in self._inner:
            raise KeyError(f"no Hugging Face counterpart is known for Megatron's parameter {name}")
        return self._inner[match[2]], int(match[1])
