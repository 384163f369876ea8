"""The digest of a model's weights: blind to order and to where tensors live, sharp to everything else."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.common.weight_sync.digest import WeightsDigest, joined, part_sums
from services.common.weight_sync.plan import Part, as_matrix

Named = dict[str, torch.Tensor]


def digest(tensors: Named) -> str:
    collected = WeightsDigest()
    for name, tensor in tensors.items():
        collected.add_tensor(name, tensor)
    return collected.hexdigest()


def model(seed: int = 0) -> Named:
    """Shapes with whole and with odd numbers of eight-byte words."""
    random = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (4, 8), "b.weight": (4, 8), "c.bias": (7,), "d.scalar": (), "e.empty": (0, 3)}
    return {name: torch.randn(shape, generator=random).to(torch.bfloat16) for name, shape in shapes.items()}


@given(st.permutations(sorted(model())))
def test_the_order_of_tensors_does_not_matter(names: list[str]) -> None:
    tensors = model()
    assert digest({name: tensors[name] for name in names}) == digest(tensors)


def test_the_digests_of_some_tensors_and_of_the_others_joined_are_that_of_all() -> None:
    tensors = model()
    names = sorted(tensors)
    some, others = ({name: tensors[name] for name in part} for part in (names[:2], names[2:]))
    assert joined(digest(some), digest(others)) == digest(tensors)


@given(st.lists(st.integers(0, 2), min_size=5, max_size=5))
def test_the_digests_of_parts_of_tensors_joined_are_that_of_the_whole(owners: list[int]) -> None:
    """Rows of one tensor, and a tensor without any, in several hands."""
    tensors, owned = model(), [WeightsDigest() for _ in range(3)]
    for row, owner in enumerate(owners[:4]):
        part = Part("a.weight", torch.bfloat16, (4, 8), (row, row + 1), (0, 8))
        owned[owner].add(part, *part_sums(part, tensors["a.weight"][row : row + 1]).tolist())
    for name, owner in zip(sorted(tensors)[1:], owners[1:], strict=True):
        owned[owner].add_tensor(name, tensors[name])
    assert joined(*(one.hexdigest() for one in owned)) == digest(tensors)


def test_a_digest_is_32_hexadecimal_digits_and_says_nothing_of_nothing() -> None:
    assert len(digest(model())) == 32
    assert int(digest(model()), 16) > 0
    assert digest({}) == "0" * 32


def test_the_memory_behind_a_tensor_does_not_matter() -> None:
    tensor = torch.arange(60, dtype=torch.int16).view(torch.bfloat16).view(6, 10)
    padded = torch.zeros(7, 13, dtype=torch.bfloat16)
    padded[1:, 3:] = tensor
    assert digest({"x": padded[1:, 3:]}) == digest({"x": tensor}) == digest({"x": tensor.t().contiguous().t()})


@pytest.mark.parametrize("offset", range(1, 9))
def test_a_view_that_starts_anywhere_in_a_larger_buffer_has_the_digest_of_its_copy(offset: int) -> None:
    buffer = torch.arange(64, dtype=torch.int16).view(torch.bfloat16)
    view = buffer[offset : offset + 21]
    assert digest({"x": view}) == digest({"x": view.clone()})


CHANGES: dict[str, Callable[[Named], Named]] = {
    "two names swapped": lambda t: t | {"a.weight": t["b.weight"], "b.weight": t["a.weight"]},
    "a name changed": lambda t: {name.replace("c.", "d."): tensor for name, tensor in t.items()},
    "reshaped": lambda t: t | {"a.weight": t["a.weight"].reshape(8, 4)},
    "transposed": lambda t: t | {"a.weight": t["a.weight"].t().contiguous()},
    "truncated": lambda t: t | {"a.weight": t["a.weight"][:3]},
    "padded with zeros": lambda t: t | {"c.bias": torch.cat([t["c.bias"], torch.zeros(1, dtype=torch.bfloat16)])},
    "one tensor missing": lambda t: {name: tensor for name, tensor in t.items() if name != "c.bias"},
    "an empty tensor missing": lambda t: {name: tensor for name, tensor in t.items() if name != "e.empty"},
    "two rows swapped": lambda t: t | {"a.weight": t["a.weight"][[1, 0, 2, 3]]},
    "the bits read as another type": lambda t: t | {"a.weight": t["a.weight"].view(torch.float16)},
    "of another update": lambda t: model(seed=1),
    "the sign of a zero": lambda t: t | {"d.scalar": -t["d.scalar"]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_shows(change: str) -> None:
    assert digest(CHANGES[change](model())) != digest(model())


@given(st.sampled_from(["a.weight", "c.bias", "d.scalar"]), st.data())
def test_any_changed_byte_shows_wherever_it_is(name: str, data: st.DataObject) -> None:
    changed = {key: tensor.clone() for key, tensor in model().items()}
    raw = changed[name].view(-1).view(torch.uint8)
    raw[data.draw(st.integers(0, raw.numel() - 1))] += data.draw(st.integers(1, 255))
    assert digest(changed) != digest(model())


@given(st.integers(0, 40), st.integers(0, 40), st.sampled_from([torch.uint8, torch.bfloat16, torch.float32]))
def test_any_two_swapped_elements_show_at_any_number_of_bytes(i: int, j: int, dtype: torch.dtype) -> None:
    tensor = torch.arange(1, 42).to(dtype)
    swapped = tensor.clone()
    swapped[[i, j]] = swapped[[j, i]]
    assert (digest({"x": swapped}) == digest({"x": tensor})) == (i == j)


@given(st.sampled_from([torch.bfloat16, torch.float32]), st.integers(1, 9), st.integers(1, 9), st.data())
def test_rectangles_of_a_tensor_add_up_to_it(dtype: torch.dtype, rows: int, columns: int, data: st.DataObject) -> None:
    tensor = torch.randn(rows, columns).to(dtype)
    row, column = data.draw(st.integers(0, rows)), data.draw(st.integers(0, columns))
    collected = WeightsDigest()
    for rows_of in ((0, row), (row, rows)):
        for columns_of in ((0, column), (column, columns)):
            part = Part("x", dtype, (rows, columns), rows_of, columns_of)
            collected.add(part, *part_sums(part, tensor[slice(*rows_of), slice(*columns_of)]).tolist())
    assert collected.hexdigest() == digest({"x": tensor})


def test_a_large_tensor_cut_anywhere_has_the_digest_of_the_whole() -> None:
    """Larger than what is summed at a time."""
    tensor = torch.randn(1200, 1000).to(torch.bfloat16)
    for cut in (1, 66, 1199):
        collected = WeightsDigest()
        for rows in ((0, cut), (cut, 1200)):
            part = Part("x", torch.bfloat16, (1200, 1000), rows, (0, 1000))
            collected.add(part, *part_sums(part, tensor[slice(*rows)]).tolist())
        assert collected.hexdigest() == digest({"x": tensor})


def test_the_sums_are_those_of_their_definition() -> None:
    tensor = torch.randn(7, 11).to(torch.bfloat16)
    bits = as_matrix(tensor)[2:5, 3:9].contiguous().view(torch.int16).tolist()
    part = Part("x", torch.bfloat16, (7, 11), (2, 5), (3, 9))
    numbered = [(value, (2 + i) * 11 + 3 + j) for i, row in enumerate(bits) for j, value in enumerate(row)]
    expected = [sum(value for value, _ in numbered), sum(value * (2 * position + 1) for value, position in numbered)]
    assert part_sums(part, tensor[2:5, 3:9]).tolist() == expected
