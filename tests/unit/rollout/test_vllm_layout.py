"""What is learnt of a model's layout by watching it load: every copy of a rectangle, or nothing at all."""

from collections.abc import Callable

import pytest
import torch

from services.rollout.vllm_layout import LayoutRecord

Q, K, GATE, NORM = (torch.arange(n, dtype=torch.float32).view(shape) for n, shape in
                    ((32, (8, 4)), (16, (4, 4)), (48, (4, 12)), (4, (4,))))  # fmt: skip
VOCABULARY = torch.arange(12, dtype=torch.float32).view(3, 4)


class Fused(torch.nn.Module):
    """The second shard of two of a fused layer, of one sharded by columns, of a padded vocabulary, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.qk, self.down, self.embedding, self.norm = (
            torch.nn.Parameter(torch.full(shape, -1.0), requires_grad=False) for shape in ((6, 4), (4, 6), (2, 4), (4,))
        )

    def load(self) -> None:
        """As vLLM's loaders do it."""
        self.qk.data.narrow(0, 0, 4).copy_(Q.narrow(0, 4, 4))
        self.qk.data.narrow(0, 4, 2).copy_(K.narrow(0, 2, 2))
        self.down.data.copy_(GATE.narrow(1, 6, 6))
        self.embedding.data[:1].copy_(VOCABULARY[2:])
        self.embedding.data[1:].fill_(0)
        self.norm.data.copy_(NORM)


def record(model: Fused, load: Callable[[], None]) -> LayoutRecord:
    seen = LayoutRecord(model)
    with seen.watching([("q", Q), ("k", K), ("gate", GATE), ("norm", NORM), ("vocabulary", VOCABULARY)]):
        load()
    return seen


def test_every_rectangle_is_known_by_where_it_comes_from_and_where_it_goes() -> None:
    model = Fused()
    regions = record(model, model.load).regions()
    assert {(region.part.name, region.part.rows, region.part.columns) for region in regions} == {
        ("q", (4, 8), (0, 4)), ("k", (2, 4), (0, 4)), ("gate", (0, 4), (6, 12)),
        ("vocabulary", (2, 3), (0, 4)), ("norm", (0, 4), (0, 1)),
    }  # fmt: skip
    wanted = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for region in regions:
        region.matrix.fill_(7)
    assert model.embedding[1].tolist() == [0] * 4, "padding is nobody's"
    model.load()
    assert all(torch.equal(parameter, wanted[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("missing", ["qk", "down", "embedding", "norm"])
def test_nothing_is_known_of_a_model_of_which_an_element_was_not_seen_to_be_copied(missing: str) -> None:
    model, other = Fused(), Fused()

    def load() -> None:
        setattr(model, missing, getattr(other, missing))  # what is loaded then is no parameter that was known
        model.load()

    assert record(model, load).regions() is None


LOADS: dict[str, Callable[[Fused], object]] = {
    "scaled": lambda model: model.qk.data.narrow(0, 4, 2).copy_(2 * K.narrow(0, 2, 2)),
    "transposed": lambda model: model.qk.data.narrow(0, 4, 2).copy_(K.t().narrow(0, 2, 2)),
    "broadcast": lambda model: model.qk.data.narrow(0, 4, 2).copy_(K[:1]),
    "by item": lambda model: model.qk.data.narrow(0, 4, 2).add_(K[0, 0].item()),
    "into every other row": lambda model: model.qk.data[::2].copy_(Q[:3]),
}


@pytest.mark.parametrize("how", LOADS)
def test_nothing_is_known_of_a_model_that_does_more_than_copy_rectangles(how: str) -> None:
    model = Fused()

    def load() -> None:
        model.qk.data.narrow(0, 0, 4).copy_(Q.narrow(0, 4, 4))
        LOADS[how](model)
        model.down.data.copy_(GATE.narrow(1, 6, 6))
        model.embedding.data[:1].copy_(VOCABULARY[2:])
        model.embedding.data[1:].fill_(0)
        model.norm.data.copy_(NORM)

    assert record(model, load).regions() is None
