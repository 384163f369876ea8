"""What the run is doing, and how long each thing took. Seconds count for one phase, so that they add up to the run's:
where a train step runs beside the rollout, they are the step's."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from services.coordinator.events import EventLog
from services.coordinator.state import RunState


class StopAsked(Exception):
    """A stop was asked for, and this is a place to stop at."""


class PhaseClock:
    """Moves the run from phase to phase and tells the watchers."""

    def __init__(self, state: RunState, events: EventLog) -> None:
        self._state = state
        self._events = events
        self._lap: dict[str, float] = defaultdict(float)
        self.total_s: dict[str, float] = defaultdict(float)
        """Seconds in each phase since the run began."""
        self.stop_asked = False
        """Set to have the run end with StopAsked before the next call that must not be cut off."""
        self._since = time.monotonic()
        self._beneath: tuple[str, str] | None = None

    def begin(self, phase: str, waiting_for: str) -> None:
        """As `enter`, but a place to stop at: raises StopAsked if that was asked for."""
        self.check_stop()
        self.enter(phase, waiting_for)

    def check_stop(self) -> None:
        """Raises StopAsked if that was asked for."""
        if self.stop_asked:
            raise StopAsked

    def enter(self, phase: str, waiting_for: str = "") -> None:
        """Ends the present phase and begins another, which watchers are told; empty: none begins.

        While another one is `over` it, it only takes its place beneath, and its seconds are the other's.
        """
        if self._beneath is not None:
            self._beneath = phase, waiting_for
            if phase:
                self._lap[phase] += 0.0  # reports name every phase, however the two came to lie
            return
        self._switch(phase, waiting_for)

    @contextmanager
    def over(self, phase: str, waiting_for: str) -> Iterator[None]:
        """Shows a phase in place of the present one, which is back at the end; after an error it stays, to be told."""
        beneath = self._state.phase, self._state.waiting_for
        self._switch(phase, waiting_for)
        self._beneath = beneath
        try:
            yield
            self._switch(*self._beneath)
        finally:
            self._beneath = None

    def _switch(self, phase: str, waiting_for: str) -> None:
        self._count()
        if phase == self._state.phase and waiting_for == self._state.waiting_for:
            return
        self._state.phase, self._state.waiting_for = phase, waiting_for
        if phase:
            self._events.append(self._state)

    def so_far(self) -> dict[str, float]:
        """Seconds in each phase since the last `lap`, which goes on."""
        self._count()
        return dict(self._lap)

    def lap(self) -> dict[str, float]:
        """Seconds in each phase since the last call, which begins an episode."""
        self._count()
        lap, self._lap = dict(self._lap), defaultdict(float)
        return lap

    def _count(self) -> None:
        now = time.monotonic()
        if self._state.phase:
            self._lap[self._state.phase] += now - self._since
            self.total_s[self._state.phase] += now - self._since
        self._since = now
