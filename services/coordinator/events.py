"""The run's history as events, for watchers that come late: replayed from the beginning, then live."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Self

from services.coordinator.report import EpisodeReport
from services.coordinator.state import RunState


@dataclass(frozen=True, slots=True)
class Event:
    """The run as it was at one moment, `elapsed_s` after its start, and the report if an episode had just ended."""

    state: RunState
    elapsed_s: float
    report: EpisodeReport | None = None

    @classmethod
    def now(cls, state: RunState, report: EpisodeReport | None = None) -> Self:
        """The present moment."""
        return cls(replace(state), state.elapsed_s, report)


class EventLog:
    """Append-only; ends with the first event whose state has ended."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._news = asyncio.Event()

    def append(self, state: RunState, report: EpisodeReport | None = None) -> None:
        """Records the state as it is now."""
        self._events.append(Event.now(state, report))
        self._news.set()
        self._news = asyncio.Event()

    async def follow(self) -> AsyncIterator[Event]:
        """Yields every event, from the run's first to its last."""
        seen = 0
        while True:
            news = self._news
            for event in self._events[seen:]:
                seen += 1
                yield event
                if event.state.life.ended:
                    return
            await news.wait()  # set already if anything was appended since it was taken
