"""What the run file's `store` section allows a run to have and to take."""

from dataclasses import dataclass
from typing import Self

from baton.config.services import StoreConfig


@dataclass(frozen=True, slots=True)
class Limits:
    """See the options of the same names."""

    max_samples: int = 0
    max_bytes: int = 0
    lease_timeout_s: float = 600.0
    max_attempts: int = 3
    ack_on_step: bool = True
    """Trained samples count as done at once, not only with the next checkpoint."""

    @property
    def bounded(self) -> bool:
        """Whether a Put may have to wait for room."""
        return bool(self.max_samples or self.max_bytes)

    @classmethod
    def of(cls, config: StoreConfig) -> Self:
        """The limits of a run file."""
        return cls(
            config.max_samples, config.max_bytes, config.lease_timeout_s, config.max_attempts, config.ack_on == "step"
        )
