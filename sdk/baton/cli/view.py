"""How a run looks: a live table in a terminal, lines anywhere else."""

from collections import deque
from collections.abc import Mapping
from typing import Protocol, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from baton.api.coordinator.v1 import coordinator_pb2 as pb
from baton.cli.console import SteadyConsole

SHOWN_EPISODES = 8
_SECONDS = "seconds/"
_UNDER_WAY = (pb.RUN_STATE_STARTING, pb.RUN_STATE_RUNNING, pb.RUN_STATE_STOPPING)
"""How a run ended is told with its result."""

# Heading -> (metric, format).
COLUMNS = {
    "reward": ("reward_mean", ".3f"),
    "loss": ("loss", ".4f"),
    "mismatch_kl": ("mismatch_kl", ".2e"),
    "length": ("response_length_mean", ".1f"),
    "eval reward": ("eval/reward", ".3f"),
    "eval loss": ("eval/loss", ".4f"),
    "eval accuracy": ("eval/accuracy", ".3f"),
}
"""Those that no shown episode has are left out."""


class RunView(Protocol):
    """Shows a run while it is entered."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def note(self, line: str) -> None:
        """Shows a line of the supervisor's own."""

    def event(self, event: pb.WatchRunResponse) -> None:
        """Shows one event of the run."""


def make_view(console: SteadyConsole) -> RunView:
    """The view that suits `console`."""
    return LiveView(console) if console.is_terminal else PlainView(console)


def state_word(state: pb.RunState) -> str:
    """A run's state in lower case, as `running`."""
    return pb.RunState.Name(state).removeprefix("RUN_STATE_").lower()


def metric_cells(metrics: Mapping[str, float]) -> dict[str, str]:
    """Heading -> formatted value; empty for a metric that the episode does not have."""
    return {heading: f"{metrics[name]:{form}}" if name in metrics else "" for heading, (name, form) in COLUMNS.items()}


def seconds_cell(metrics: Mapping[str, float]) -> str:
    """The episode's seconds, then those of each phase, the longest first, as `7.1 (train 5.0, generate 2.1)`."""
    phases = {name.removeprefix(_SECONDS): value for name, value in metrics.items() if name.startswith(_SECONDS)}
    total = phases.pop("episode", sum(phases.values()))
    parts = ", ".join(f"{name} {value:.1f}" for name, value in sorted(phases.items(), key=lambda item: -item[1]))
    return f"{total:.1f} ({parts})" if parts else f"{total:.1f}"


class PlainView:
    """One line for each phase, and one for each episode."""

    def __init__(self, console: SteadyConsole) -> None:
        self._console = console
        self._last = (pb.RUN_STATE_UNSPECIFIED, -1, "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def note(self, line: str) -> None:
        """Prints `line`."""
        self._console.say(line)

    def event(self, event: pb.WatchRunResponse) -> None:
        """Prints the event, unless it says what the last one said."""
        status = event.status
        if event.HasField("report"):
            metrics = event.report.metrics
            words = [f"{heading} {value}" for heading, value in metric_cells(metrics).items() if value]
            place = f"episode {event.report.episode_id} done ({event.report.episode_id + 1} of {status.num_episodes})"
            self._console.say(f"{place}: {', '.join([*words, f'seconds {seconds_cell(metrics)}'])}")
            return
        now = (status.state, status.episode, status.phase)
        if status.phase and now != self._last:
            place = f"episode {status.episode}" if status.episode < status.num_episodes else "after the last episode"
            self._console.say(f"{place}: {status.phase}")
        elif not status.phase and status.state != self._last[0] and status.state in _UNDER_WAY:
            self._console.say(state_word(status.state))
        self._last = now


class LiveView:
    """A progress bar over the episodes, the phase, and a table of the last episodes, below the lines printed so far."""

    def __init__(self, console: SteadyConsole) -> None:
        self._console = console
        self._reports: deque[pb.EpisodeReport] = deque(maxlen=SHOWN_EPISODES)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console)
        self._task = self._progress.add_task("starting", total=None)
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def note(self, line: str) -> None:
        """Prints `line` above the table."""
        self._console.say(line)

    def event(self, event: pb.WatchRunResponse) -> None:
        """Takes the event into the picture."""
        status = event.status
        if event.HasField("report"):
            self._reports.append(event.report)
        phase = status.phase or state_word(status.state)
        done = self._reports[-1].episode_id + 1 if self._reports else 0
        self._progress.update(self._task, description=phase, total=status.num_episodes, completed=done)

    def _render(self) -> RenderableType:
        if not self._reports:
            return self._progress
        rows = [metric_cells(report.metrics) for report in self._reports]
        headings = [heading for heading in COLUMNS if any(row[heading] for row in rows)]
        table = Table("episode", *headings, "seconds", box=None)
        for report, row in zip(self._reports, rows, strict=True):
            table.add_row(str(report.episode_id), *(row[heading] for heading in headings), seconds_cell(report.metrics))
        return Group(self._progress, table)
