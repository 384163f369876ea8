"""What a run's coordinator says of the run's life, in the state that it keeps in the ledger."""

from enum import StrEnum

STATE_NAME = "coordinator"
"""What the state is called there: JSON, with the `life`."""


class Life(StrEnum):
    """Where a run is in its life; the names are those of the API's RunState."""

    UNSPECIFIED = "none"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def ended(self) -> bool:
        """Whether nothing will happen any more."""
        return self in (Life.SUCCEEDED, Life.FAILED, Life.STOPPED)
