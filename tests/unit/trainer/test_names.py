"""Hugging Face tensors and Megatron's shards: splitting and merging lose nothing, whatever the parallel layout."""

from dataclasses import replace

import pytest
import torch

from services.common.weight_sync.plan import as_matrix
from services.trainer.megatron.family import ModelShape
from services.trainer.megatron.names import NameMap

LLAMA = ModelShape(
    family="llama", num_layers=2, hidden_size=16, num_heads=8, num_kv_heads=4, head_dim=4, ffn_size=24, vocab_size=51,
    max_positions=64, norm_eps=1e-6, rope_base=1e4, rope_scaling=None, tied_embeddings=False, qkv_bias=False, qk_norm=False,
)  # fmt: skip
SHAPES = {
    "llama": LLAMA,
    "llama-tied": replace(LLAMA, tied_embeddings=True),
    "llama-one-query-per-group": replace(LLAMA, num_heads=4),
    "llama-three-queries-per-group": replace(LLAMA, num_heads=12),
    "llama-eight-groups": replace(LLAMA, num_heads=16, num_kv_heads=8),
    "qwen2-biases": replace(LLAMA, family="qwen2", qkv_bias=True),
    "qwen3-norms-and-wide-heads": replace(LLAMA, family="qwen3", qk_norm=True, head_dim=8),
}


def hf_model(shape: ModelShape) -> dict[str, torch.Tensor]:
    """All tensors of the Hugging Face model, every element another number."""
    h, f, q, kv = shape.hidden_size, shape.ffn_size, shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab_size, h), "model.norm.weight": (h,)}
    if not shape.tied_embeddings:
        sizes["lm_head.weight"] = (shape.vocab_size, h)
    for layer in range(shape.num_layers):
        own = {
            "input_layernorm.weight": (h,), "post_attention_layernorm.weight": (h,),
            "self_attn.q_proj.weight": (q, h), "self_attn.k_proj.weight": (kv, h), "self_attn.v_proj.weight": (kv, h),
            "self_attn.o_proj.weight": (h, q),
            "mlp.gate_proj.weight": (f, h), "mlp.up_proj.weight": (f, h), "mlp.down_proj.weight": (h, f),
        }  # fmt: skip
        if shape.qkv_bias:
            own |= {f"self_attn.{x}_proj.bias": (size,) for x, size in (("q", q), ("k", kv), ("v", kv))}
        if shape.qk_norm:
            own |= {f"self_attn.{x}_norm.weight": (shape.head_dim,) for x in "qk"}
        sizes |= {f"model.layers.{layer}.{name}": size for name, size in own.items()}
    start, tensors = 1, {}
    for name, size in sizes.items():
        count = torch.Size(size).numel()
        tensors[name] = torch.arange(start, start + count, dtype=torch.float64).view(size)
        start += count
    return tensors


def megatron_names(shape: ModelShape) -> list[str]:
    """Parameter names of Megatron's GPT on a single stage."""
    inner = [
        "input_layernorm.weight", "self_attention.linear_qkv.weight", "self_attention.linear_proj.weight",
        "pre_mlp_layernorm.weight", "mlp.linear_fc1.weight", "mlp.linear_fc2.weight",
    ]  # fmt: skip
    if shape.qkv_bias:
        inner.append("self_attention.linear_qkv.bias")
    if shape.qk_norm:
        inner += ["self_attention.q_layernorm.weight", "self_attention.k_layernorm.weight"]
    outer = ["embedding.word_embeddings.weight", "decoder.final_layernorm.weight", "output_layer.weight"]
    return [*outer, *(f"decoder.layers.{layer}.{name}" for layer in range(shape.num_layers) for name in inner)]


def own_names(shape: ModelShape) -> list[str]:
    """Those that are no copies."""
    return [name for name in megatron_names(shape) if not NameMap(shape).is_copy(name)]


def height(shape: ModelShape, name: str, size: int) -> int:
    """Rows of a rank's parameter, as Megatron makes it."""
    if name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        return shape.padded_vocab(size) // size
    return sum(place.height for place in NameMap(shape).places(name, 0, 0, size))


def shards_of(shape: ModelShape, name: str, size: int) -> list[torch.Tensor]:
    """Every rank's parameter, as a matrix, out of the Hugging Face model; zeros where nothing belongs."""
    model, shards = hf_model(shape), []
    for rank in range(size):
        places = NameMap(shape).places(name, 0, rank, size)
        columns = places[0].columns[1] - places[0].columns[0]
        shard = torch.zeros(height(shape, name, size), columns, dtype=torch.float64)
        for place in places:
            place.of(shard).copy_(as_matrix(model[place.name])[place.rectangle])
        shards.append(shard)
    return shards


def merged(shape: ModelShape, size: int) -> dict[str, torch.Tensor]:
    """The Hugging Face model out of the shards of `size` ranks; -1 where none has anything."""
    answer: dict[str, torch.Tensor] = {}
    for name in own_names(shape):
        for rank, shard in enumerate(shards_of(shape, name, size)):
            for place in NameMap(shape).places(name, 0, rank, size):
                whole = answer.setdefault(place.name, torch.full(place.shape, -1.0, dtype=torch.float64))
                as_matrix(whole)[place.rectangle] = place.of(shard)
    return answer


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_split_then_merge_gives_every_tensor_of_the_model_back(shape: ModelShape, size: int) -> None:
    model, back = hf_model(shape), merged(shape, size)
    assert set(back) == set(model)
    for name, tensor in model.items():
        assert torch.equal(back[name], tensor), name


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_all_ranks_hold_shards_of_one_shape_and_every_element_is_somewhere(shape: ModelShape) -> None:
    model = hf_model(shape)
    for name in own_names(shape):
        shards = shards_of(shape, name, 4)
        assert len({shard.shape for shard in shards}) == 1, name
        hf_names = {place.name for place in NameMap(shape).places(name, 0, 0, 4)}
        whole = {value for hf_name in hf_names for value in model[hf_name].flatten().tolist()}
        assert {value for shard in shards for value in shard.flatten().tolist()} - {0.0} == whole, name


def test_a_ranks_qkv_holds_for_each_of_its_groups_the_queries_then_key_then_value() -> None:
    shape = SHAPES["llama-eight-groups"]
    model, d = hf_model(shape), shape.head_dim
    q, k, v = (model[f"model.layers.0.self_attn.{x}_proj.weight"] for x in "qkv")
    for rank, shard in enumerate(shards_of(shape, "decoder.layers.0.self_attention.linear_qkv.weight", 4)):
        expected = []
        for group in (2 * rank, 2 * rank + 1):
            expected += [q[head * d : (head + 1) * d] for head in (2 * group, 2 * group + 1)]
            expected += [x[group * d : (group + 1) * d] for x in (k, v)]
        assert torch.equal(shard, torch.cat(expected))


def test_a_ranks_first_mlp_matrix_is_its_part_of_gate_then_its_part_of_up() -> None:
    model = hf_model(LLAMA)
    gate, up = (model[f"model.layers.1.mlp.{x}_proj.weight"] for x in ("gate", "up"))
    second = shards_of(LLAMA, "decoder.layers.1.mlp.linear_fc1.weight", 2)[1]
    assert torch.equal(second, torch.cat([gate[12:], up[12:]]))


@pytest.mark.parametrize("size", [2, 4])
def test_a_vocabulary_that_does_not_divide_is_padded_with_zeros_on_the_last_rank(size: int) -> None:
    shards = shards_of(LLAMA, "embedding.word_embeddings.weight", size)
    padding = LLAMA.padded_vocab(size) - LLAMA.vocab_size
    assert padding == 1
    assert not shards[-1][-padding:].any()
    assert all(bool(shard.any(dim=1).all()) for shard in shards[:-1])


def test_a_stage_numbers_its_layers_from_its_first() -> None:
    [place] = NameMap(LLAMA).places("decoder.layers.1.input_layernorm.weight", 12, 0, 1)
    assert place.name == "model.layers.13.input_layernorm.weight"


def test_a_tied_output_layer_is_no_tensor_of_its_own() -> None:
    names = NameMap(SHAPES["llama-tied"])
    assert names.is_copy("output_layer.weight")
    assert not NameMap(LLAMA).is_copy("output_layer.weight")
    assert [place.name for place in names.places("output_layer.weight", 0, 0, 1)] == ["model.embed_tokens.weight"]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_what_is_not_sharded_is_the_same_on_all_ranks_and_what_is_sharded_nowhere_twice(shape: ModelShape) -> None:
    names = NameMap(shape)
    for name in own_names(shape):
        ranks = [names.places(name, 0, rank, 4) for rank in range(4)]
        if names.is_sharded(name):
            rectangles = [(place.name, place.rows, place.columns) for places in ranks for place in places]
            assert len(set(rectangles)) == len(rectangles), name
        else:
            assert all(places == ranks[0] for places in ranks), name


@pytest.mark.parametrize("name", ["decoder.layers.0.mlp.router.weight", "decoder.layers.x.input_layernorm.weight", "other"])
def test_an_unknown_parameter_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        NameMap(LLAMA).places(name, 0, 0, 1)
