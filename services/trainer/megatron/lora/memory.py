"""How many numbers a model's adapters have on a rank, from its shape before anything is loaded."""

from collections.abc import Iterator
from typing import NamedTuple

from baton.config.lora import LoraConfig
from services.trainer.megatron.family import ModelShape
from services.trainer.megatron.heads import Head
from services.trainer.megatron.parallel import Layout


class _Kind(NamedTuple):
    """A projection: its Megatron layer and Hugging Face name, the layer's kind, and what A and B have here for each rank."""

    layer: str
    name: str
    kind: str
    numbers: float


def _in_layer(shape: ModelShape, tensor: int) -> Iterator[_Kind]:
    hidden, query, key = shape.hidden_size, shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    for letter, outputs in (("q", query), ("k", key), ("v", key)):
        numbers = hidden + outputs / tensor
        yield _Kind("self_attention.linear_qkv", f"self_attn.{letter}_proj", "ColumnParallelLinear", numbers)
    yield _Kind("self_attention.linear_proj", "self_attn.o_proj", "RowParallelLinear", query / tensor + hidden)
    for name in ("gate", "up"):
        numbers = hidden + shape.ffn_size / tensor
        yield _Kind("mlp.linear_fc1", f"mlp.{name}_proj", "ColumnParallelLinear", numbers)
    yield _Kind("mlp.linear_fc2", "mlp.down_proj", "RowParallelLinear", shape.ffn_size / tensor + hidden)


def _outer(shape: ModelShape, layout: Layout, head: Head) -> Iterator[_Kind]:
    vocabulary = shape.padded_vocab(layout.tensor_size) / layout.tensor_size + shape.hidden_size
    if layout.pipeline_rank == 0:
        yield _Kind("embedding.word_embeddings", "model.embed_tokens", "VocabParallelEmbedding", vocabulary)
    if layout.is_last_stage and head != "logprobs":
        yield _Kind("output_layer", "score", "LinearLayer", shape.hidden_size + 1)
    elif layout.is_last_stage and not shape.tied_embeddings:
        yield _Kind("output_layer", "lm_head", "ColumnParallelLinear", vocabulary)


def adapter_count(shape: ModelShape, config: LoraConfig, layout: Layout, head: Head) -> int:
    """Numbers in this rank's factors; 0 without LoRA."""
    if not config.enable_lora:
        return 0
    part, found = config.part_module_name or "", 0.0

    def of(one: _Kind, layer: str, prefix: str) -> float:
        if one.kind not in config.layers or not (part in f"{layer}{one.layer}" or part in f"{prefix}{one.name}"):
            return 0.0
        left_out = config.column_only_qkv and one.kind == "ColumnParallelLinear" and not one.layer.endswith("linear_qkv")
        return 0.0 if left_out else one.numbers

    layers = shape.num_layers // layout.pipeline_size
    for number in range(layout.pipeline_rank * layers, (layout.pipeline_rank + 1) * layers):
        names = f"decoder.layers.{number}.", f"model.layers.{number}."
        found += sum(of(one, *names) for one in _in_layer(shape, layout.tensor_size))
    found += sum(of(one, "", "") for one in _outer(shape, layout, head))
    return round(found * config.lora_dim)
