"""What a model takes of a device's memory, estimated from its shape before anything is loaded.

Bytes of one rank. What a layer keeps for its backward pass is counted tensor by tensor, as `layers.py`, `varlen.py` and
Megatron's feed-forward part keep it; beside that comes what is alive at the height of a step. docs/trainer.md tells how near
it is to what was measured.
"""

from dataclasses import dataclass

from baton.config.trainable import ForwardConfig, TrainableConfig
from services.trainer.megatron.family import ModelShape
from services.trainer.megatron.heads import Head
from services.trainer.megatron.logprobs import BLOCK_BYTES
from services.trainer.megatron.lora.memory import adapter_count
from services.trainer.megatron.parallel import Layout

_FLOAT32 = 4
_HELD_BLOCKS = {"cuda": 2.0, "cpu": 2.5}
"""Blocks of logits in float32 that the head holds at once."""
_WITH_GRADIENTS = 1.4
"""What a layer takes while its backward pass is computed, of what it keeps for that."""


@dataclass(frozen=True, slots=True)
class Widths:
    """Numbers that a token has in one layer on one rank: hidden, between tensor-parallel parts (`outer`), queries, keys and
    values together, feed-forward."""

    hidden: float
    outer: float
    query: float
    key_value: float
    ffn: float

    @classmethod
    def of(cls, shape: ModelShape, tensor: int, *, sequence_parallel: bool) -> "Widths":
        """Of a model over `tensor` ranks."""
        return cls(
            hidden=shape.hidden_size,
            outer=shape.hidden_size / (tensor if sequence_parallel else 1),
            query=shape.num_heads * shape.head_dim / tensor,
            key_value=2 * shape.num_kv_heads * shape.head_dim / tensor,
            ffn=shape.ffn_size / tensor,
        )


def parameter_count(shape: ModelShape, layout: Layout, head: Head) -> int:
    """Parameters on this rank."""
    tensor, hidden = layout.tensor_size, shape.hidden_size
    heads = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    matrices = hidden * (heads + shape.num_heads * shape.head_dim + 3 * shape.ffn_size) // tensor
    vectors = 2 * hidden + (2 * shape.head_dim if shape.qk_norm else 0) + (heads // tensor if shape.qkv_bias else 0)
    count = shape.num_layers // layout.pipeline_size * (matrices + vectors)
    vocabulary = shape.padded_vocab(tensor) // tensor * hidden
    first = layout.pipeline_rank == 0
    if first:
        count += vocabulary
    if layout.is_last_stage:
        tied = shape.tied_embeddings and first  # a last stage that is not the first has a copy
        count += hidden + (hidden if head != "logprobs" else 0 if tied else vocabulary)
    return count


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """What a model takes from when it is loaded (`weights`, `gradients`, `optimizer`), and for a micro-batch: `activations`
    between forward and backward, and `working` in the layer or the head that is computed."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    working: float

    @property
    def lasting(self) -> float:
        """What it takes between steps, too."""
        return self.weights + self.gradients + self.optimizer

    @property
    def passing(self) -> float:
        """What it takes beside that while it computes."""
        return self.activations + self.working


def memory_of(
    shape: ModelShape, config: TrainableConfig | ForwardConfig, layout: Layout, head: Head, *, tokens: int, fused: bool,
    rows: int = 1, shared: bool = False,
) -> ModelMemory:  # fmt: skip
    """Of a model that trains micro-batches of `tokens`, or only scores them. `fused`: pointwise operations are compiled;
    `rows`: micro-batches that the step has, of which the earlier pipeline stages hold several at once; `shared`: its own
    weights are another model's, too, and counted there."""
    trained = isinstance(config, TrainableConfig)
    element = _FLOAT32 if config.dtype == "float32" else 2
    count = parameter_count(shape, layout, head)
    adapted = trained and config.lora.enable_lora
    changing = adapter_count(shape, config.lora, layout, head) if adapted else count * trained
    held = (0 if shared else count) + (changing if adapted else 0)
    if adapted and config.lora.sync == "merged":
        held += count  # what is sent
    copies = layout.data_size if trained and config.use_distributed_optimizer else 1
    moments = 2 * _FLOAT32 + (0 if element == _FLOAT32 else _FLOAT32)  # and float32 weights beside 16-bit ones
    widths = Widths.of(shape, layout.tensor_size, sequence_parallel=trained and config.sequence_parallel)
    cuda = layout.device.type == "cuda"
    layer = kept_by_layer(shape, widths, element, fused=fused, cuda=cuda, frozen=adapted)
    kept = 0.0
    if trained:
        layer += _kept_by_adapters(config, widths, element) if adapted else 0
        waiting = min(layout.pipeline_size - layout.pipeline_rank, rows)
        layers = shape.num_layers // layout.pipeline_size
        kept = waiting * _kept_by_all(config, layers, layer, widths, element, fused=fused)
    last = _head(shape, layout, head, tokens, element, trained=trained, frozen=adapted) if layout.is_last_stage else 0.0
    return ModelMemory(
        weights=held * element,
        gradients=changing * _FLOAT32,
        optimizer=changing * moments / copies,
        activations=tokens * kept,
        working=max(tokens * layer * _WITH_GRADIENTS, last),
    )


def kept_by_layer(
    shape: ModelShape, widths: Widths, element: int, *, fused: bool, cuda: bool, frozen: bool = False
) -> float:
    """Bytes per token that a layer keeps for its backward pass; `frozen`: its own weights are not trained."""
    # a norm's input and output; unfused, what it makes of its input in float32, twice, and its output
    inside = 1 if frozen else 2  # one of them is for the gradient of the norm's weight
    norms = 2 * widths.outer * (2 * element if fused else inside * _FLOAT32 + element)
    attention = _attention(shape, widths, element, fused=fused, cuda=cuda, inside=inside)
    return norms + attention + _feed_forward(widths, element, fused=fused)


def _kept_by_adapters(config: TrainableConfig, widths: Widths, element: int) -> float:
    """What is between A and B in all layers' projections; and with dropout, the inputs of A that are left and which."""
    between = 7 * config.lora.lora_dim * element
    inputs = 2 * widths.hidden + widths.query + widths.ffn
    return between + (inputs * (element + 1) if config.lora.lora_dropout else 0)


def _attention(shape: ModelShape, widths: Widths, element: int, *, fused: bool, cuda: bool, inside: int) -> float:
    joint = widths.query + widths.key_value
    kept = (joint + widths.query) * element  # queries, keys and values as the kernel takes them, and its output
    if cuda:
        kept += widths.query * element  # the output again, joined where kernels of several kinds shared the row
    elif element != _FLOAT32:
        kept = (joint + widths.query) * _FLOAT32 + widths.query * element  # a CPU's kernel is faster in float32
    if not shape.qk_norm:
        return kept
    if fused:
        return kept + joint * element
    keys = widths.key_value / 2
    beside = (joint - keys) * element if element == _FLOAT32 else 0.0  # keys are then seen where they were projected
    return kept + (widths.query + keys) * inside * _FLOAT32 + beside


def _feed_forward(widths: Widths, element: int, *, fused: bool) -> float:
    """Gate and up, and their product; unfused, also the gate's activation and a copy of up."""
    return (3 if fused else 5) * widths.ffn * element


def _kept_by_all(
    config: TrainableConfig, layers: int, layer: float, widths: Widths, element: int, *, fused: bool
) -> float:
    """Bytes per token that a stage's layers keep between forward and backward."""
    if config.recompute_granularity == "full":
        again = min(config.recompute_num_layers or layers, layers)
        return again * widths.outer * element + (layers - again) * layer
    if config.recompute_granularity == "selective":
        layer -= _feed_forward(widths, element, fused=fused)
    return layers * layer


def _head(
    shape: ModelShape, layout: Layout, head: Head, tokens: int, element: int, *, trained: bool, frozen: bool
) -> float:
    """The last norm, the logits of some blocks, and the gradients of the head, unless it is frozen, and of its inputs."""
    states = shape.hidden_size * tokens * (element + 2 * _FLOAT32 * trained)
    if head != "logprobs":
        return states
    rows = shape.padded_vocab(layout.tensor_size) // layout.tensor_size
    device = layout.device.type
    block = min(BLOCK_BYTES[device], tokens * rows * _FLOAT32)
    return states + _HELD_BLOCKS[device] * block + rows * shape.hidden_size * element * (trained and not frozen)
