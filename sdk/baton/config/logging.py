"""`logging`: where the run's metrics go beside its own `metrics.jsonl` and `steps.jsonl`."""

from typing import Annotated

from pydantic import Field

from baton.config.base import Section


class LoggingConfig(Section):
    """Copies of the metrics for the tools that draw them."""

    tensorboard: bool = True
    """Write TensorBoard event files to `tensorboard` in the run's directory."""

    wandb_project: Annotated[str, Field(min_length=1)] | None = None
    """Project of Weights & Biases that gets the metrics too; its own environment variables say the rest, such
    as WANDB_MODE and WANDB_API_KEY. The package must be installed where the coordinator runs. null: none."""
