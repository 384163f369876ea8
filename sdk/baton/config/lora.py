"""`models.<name>.lora`: low-rank adapters of a trainable model."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from baton.config.base import PositiveFloat, PositiveInt, Section

LORA_LAYERS = (
    "ColumnParallelLinear",
    "RowParallelLinear",
    "LinearLayer",
    "VocabParallelEmbedding",
    "Embedding",
)


def _split(text: str) -> tuple[str, ...]:
    return tuple(name for name in (part.strip() for part in text.split(",")) if name)


def _check_layers(text: str) -> str:
    names = _split(text)
    unknown = [name for name in names if name not in LORA_LAYERS]
    if unknown or not names:
        raise ValueError(
            f"must be a comma-separated choice of {', '.join(LORA_LAYERS)}; "
            f"{'remove ' + ', '.join(unknown) if unknown else 'name at least one'}"
        )
    return text


class LoraConfig(Section):
    """Low-rank adapters: the update of a frozen weight is (lora_scaling / lora_dim) * B @ A."""

    enable_lora: bool = False
    """Train adapters and freeze the model's own weights."""

    part_module_name: str | None = None
    """Convert only the modules whose dotted name contains this text. null: all."""

    lora_dim: PositiveInt = 8
    """Rank of A and B."""

    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that an element on the adapter's path is dropped in training."""

    lora_scaling: PositiveFloat = 1.0
    """Numerator of the adapter's multiplier, which is lora_scaling / lora_dim."""

    lora_layer: Annotated[str, AfterValidator(_check_layers)] = ",".join(LORA_LAYERS)
    """Kinds of layer to convert, separated by commas."""

    column_only_qkv: bool = False
    """Of the column-parallel layers, convert only the attention's query, key and value projections."""

    load: str | None = None
    """Directory of an adapter in PEFT's format to start from; projections that it lacks begin anew. null: all begin anew."""

    sync: Literal["adapter", "merged"] = "adapter"
    """What the rollout receives after a train step: the adapter, or the weights with the adapter added."""

    checkpoint: Literal["adapter", "merged"] = "adapter"
    """What a checkpoint holds: the adapter, or the weights with the adapter added; never both. From a checkpoint of merged
    weights a run goes on with these as its model's own, and with new adapters and a new optimizer."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The kinds of layer in `lora_layer`."""
        return _split(self.lora_layer)

    @property
    def sends_adapter(self) -> bool:
        """Whether the rollout receives adapters alone."""
        return self.enable_lora and self.sync == "adapter"

    @property
    def multiplier(self) -> float:
        """Factor of B @ A in the update of the weight."""
        return self.lora_scaling / self.lora_dim
