"""`baton logs`: what the services have printed."""

import time
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.text import Text

from baton.cli.console import console
from baton.cli.options import DEFAULT_OUTPUT_DIR, OutputDir, RunId
from baton.errors import NotFoundError
from baton.local.run_directory import RunDirectory

FOLLOW_S = 0.2
_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "red")


def logs(
    service: Annotated[str | None, typer.Argument(help="One service, as trainer or rollout-0. (default: all)")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as lines arrive, until Ctrl-C.")] = False,
    run_id: RunId = None,
    output_dir: OutputDir = DEFAULT_OUTPUT_DIR,
) -> None:
    """Print the logs of a deployment, each line under its service's name."""
    directory = RunDirectory.find(output_dir, run_id)
    tails: dict[str, _Tail] = {}
    if service is not None and service not in directory.logs():
        raise NotFoundError(f"{service} has no log in {directory.path / 'logs'}; there are: {', '.join(directory.logs())}")
    while True:
        for name, path in directory.logs().items():  # a service may start, and so get its log, while we follow
            if service in (None, name):
                tails.setdefault(name, _Tail(path, len(tails))).print_new(name, finished=not follow)
        if not follow:
            return
        time.sleep(FOLLOW_S)


class _Tail:
    """One log file, and how far it has been printed."""

    def __init__(self, path: Path, index: int) -> None:
        self._file: TextIO = path.open(errors="replace")
        self._colour = _COLOURS[index % len(_COLOURS)]
        self._begun = ""

    def print_new(self, name: str, *, finished: bool) -> None:
        """Prints the lines that are complete, and the last, incomplete one if the file is `finished`."""
        lines = (self._begun + self._file.read()).split("\n")
        self._begun = lines.pop()
        if finished and self._begun:
            lines.append(self._begun)
        for line in lines:
            console.print(Text.assemble((f"{name:<12} ", self._colour), Text.from_ansi(line)), soft_wrap=True)
