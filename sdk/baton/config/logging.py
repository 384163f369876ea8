"""`logging`: where the run's metrics go beside its own `metrics.jsonl` and `steps.jsonl`."""

import importlib.util
from typing import Annotated

from pydantic import Field

from baton.config.base import Section
from baton.errors import ConfigError


class LoggingConfig(Section):
    """Copies of the metrics for the tools that draw them."""

    tensorboard: bool = True
    """Write TensorBoard event files to `tensorboard` in the run's directory."""

    wandb_project: Annotated[str, Field(min_length=1)] | None = None
    """Project of Weights & Biases that gets the metrics too; its own environment variables say the rest, such
    as WANDB_MODE and WANDB_API_KEY. The package must be installed where the coordinator runs. null: none."""

    def require_installed(self) -> None:
        """Raises ConfigError if it asks for a package that is not there. For where the coordinator runs."""
        if self.wandb_project is not None and importlib.util.find_spec("wandb") is None:
            raise ConfigError(
                f"logging.wandb_project: got {self.wandb_project!r}; the package wandb is not installed where the "
                "coordinator runs; run `pip install wandb` there, or leave the option out"
            )
