"""The terminal: a console that a closed pipe or a lost terminal cannot stop, since a run may depend on who prints."""

import os
import sys

from rich.console import Console


class SteadyConsole(Console):
    """Falls silent, instead of ending the program, once nobody reads what it prints."""

    def on_broken_pipe(self) -> None:
        """Sends all further output nowhere."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def say(self, line: str) -> None:
        """Prints `line` as it is: no markup, no emoji codes, no wrapping, no colours of its own."""
        try:
            self.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
        except OSError:  # the terminal has gone
            self.on_broken_pipe()


console = SteadyConsole()
