"""`baton logs`: what the services have printed."""

import time
from pathlib import Path
from typing import TextIO

from rich.text import Text

from baton.cli.console import console
from baton.errors import NotFoundError
from baton.local.run_directory import RunDirectory

FOLLOW_S = 0.2
_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "red")


def print_logs(output_dir: Path, run_id: str | None, service: str | None, *, follow: bool) -> None:
    """Prints the logs of one service or, if `service` is None, of all; with `follow`, until Ctrl-C."""
    directory = RunDirectory.find(output_dir, run_id)
    tails: dict[str, _Tail] = {}
    if service is not None and service not in directory.logs():
        raise NotFoundError(f"{service} has no log in {directory.path / 'logs'}; there are: {', '.join(directory.logs())}")
    while True:
        for name, path in directory.logs().items():  # a service may start, and so get its log, while we follow
            if service in (None, name):
                if name not in tails:
                    tails[name] = _Tail(path, len(tails))
                tails[name].print_new(name, finished=not follow)
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
