"""The trained part of a layer with LoRA: factors A and B for each projection. The update of a projection's weight is
multiplier * B @ A.

Fresh factors are PEFT's: of a linear layer A is uniform within 1 / sqrt(inputs) and B zero; of an embedding A is zero and B
normal. They are drawn whole from the seed and the projection's name, so that they are the same under every layout.

Shape suffixes: T tokens, I inputs, O outputs, R rank, V tokens of the vocabulary, H hidden.
"""

import hashlib
from collections.abc import Callable, Collection

import torch
from torch import nn
from torch.nn import functional

from baton.config.lora import LoraConfig
from services.trainer.megatron.lora.dropout import dropped
from services.trainer.megatron.lora.projections import Makeup, Projection


class Factors(nn.Module):
    """A and B of one projection, or this rank's part: A [R, I] and B [O, R]; of an embedding [R, V] and [H, R]."""

    def __init__(self, projection: Projection, rank: int, seed: int, like: torch.Tensor, *, embedding: bool) -> None:
        """`like` has the parameters' device and dtype."""
        super().__init__()
        self.projection, self.embedding = projection, embedding
        rows, columns = projection.shape
        height, width = projection.height, projection.columns[1] - projection.columns[0]
        a, b = ((rank, height), (width, rank)) if embedding else ((rank, width), (height, rank))
        self.lora_A = nn.Parameter(torch.empty(a, device=like.device, dtype=like.dtype))
        self.lora_B = nn.Parameter(torch.empty(b, device=like.device, dtype=like.dtype))
        self.whole_A, self.whole_B = ((rank, rows), (columns, rank)) if embedding else ((rank, columns), (rows, rank))
        self.reset(seed)

    @torch.no_grad()
    def reset(self, seed: int) -> None:
        """Makes them fresh."""
        drawn = hashlib.sha256(f"{seed} {self.projection.name}".encode()).digest()[:8]
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(drawn, "big") >> 1)
        if self.embedding:
            self.lora_A.zero_()
            self.lora_B.copy_(torch.randn(self.whole_B, generator=generator, device="cpu"))
            return
        bound = self.whole_A[1] ** -0.5
        whole = (2 * torch.rand(self.whole_A, generator=generator, device="cpu") - 1) * bound
        self.lora_A.copy_(whole[:, slice(*self.projection.columns)])
        self.lora_B.zero_()

    def update(self) -> torch.Tensor:
        """B @ A in float32, in the shape of this rank's part of the weight."""
        product = self.lora_B.float() @ self.lora_A.float()
        return product.t() if self.embedding else product


class Adapters(nn.Module):
    """The factors of one layer, by the last part of their projection's name; projections that are not adapted have none."""

    def __init__(
        self, makeup: Makeup, adapted: Collection[str], options: LoraConfig, seed: int, like: torch.Tensor, *,
        embedding: bool = False,
    ) -> None:  # fmt: skip
        """`adapted`: names of projections."""
        super().__init__()
        self.makeup, self.rank = makeup, options.lora_dim
        self.multiplier, self.dropout = options.multiplier, 0.0 if embedding else options.lora_dropout
        self.enabled = True
        """If not, the layer computes with its own weight only."""
        for projection in makeup.projections:
            if projection.name in adapted:
                factors = Factors(projection, self.rank, seed, like, embedding=embedding)
                self.add_module(projection.leaf, factors)

    @property
    def factors(self) -> dict[str, Factors]:
        """By the projection's last name, in the weight's order."""
        return dict(self.named_children())

    def mark(self, *, sharded: dict[str, int], summed: str = "") -> None:
        """Marks the factors for Megatron: `sharded` by the axis that is divided over tensor-parallel ranks; `summed` if the
        ranks have parts of the sequence, and so of the gradient."""
        for factors in self.factors.values():
            for name, parameter in factors.named_parameters():
                if name in sharded:
                    parameter.tensor_model_parallel = True
                    parameter.partition_dim, parameter.partition_stride = sharded[name], 1
                parameter.sequence_parallel = name == summed

    def down(self, x_TI: torch.Tensor, *, alike: bool) -> torch.Tensor:
        """Inputs through all A: [T, factors * R], scaled. `alike`: whether all tensor-parallel ranks have these inputs."""
        if self.dropout and self.training:
            x_TI = dropped(x_TI, self.dropout, alike=alike)
        down = [factors.lora_A for factors in self.factors.values()]
        return functional.linear(x_TI, down[0] if len(down) == 1 else torch.cat(down)) * self.multiplier

    def up(self, low_TR: torch.Tensor) -> torch.Tensor:
        """What `down` made, through each B, in the order of the weight's rows: [T, O]."""
        parts = dict(zip(self.factors, low_TR.split(self.rank, dim=-1), strict=True))
        return self._joined(
            lambda leaf, factors: functional.linear(parts[leaf], factors.lora_B),
            lambda height: low_TR.new_zeros(*low_TR.shape[:-1], height), low_TR.dim() - 1,
        )  # fmt: skip

    def weight_update(self) -> torch.Tensor:
        """What the factors add to the weight, in its shape; float32."""
        like = next(self.parameters())
        width = self.makeup.projections[0].columns[1] - self.makeup.projections[0].columns[0]
        return self.multiplier * self._joined(
            lambda _, factors: factors.update(),
            lambda height: torch.zeros(height, width, device=like.device), 0,
        )  # fmt: skip

    def _joined(
        self, make: Callable[[str, Factors], torch.Tensor], nothing: Callable[[int], torch.Tensor], dim: int
    ) -> torch.Tensor:
        """Every projection's part along `dim`, laid block by block as in the weight."""
        factors = self.factors
        parts = [
            make(projection.leaf, factors[projection.leaf]) if projection.leaf in factors else nothing(projection.height)
            for projection in self.makeup.projections
        ]
        if len(parts) == 1:
            return parts[0]
        if self.makeup.groups == 1:
            return torch.cat(parts, dim)
        blocks = [part.unflatten(dim, (self.makeup.groups, -1)) for part in parts]
        return torch.cat(blocks, dim + 1).flatten(dim, dim + 1)
