"""The `baton` command: start a run's services on this machine, watch the run, end everything."""

import sys

import typer

from baton.cli.logs import logs
from baton.cli.run import run
from baton.cli.status import status
from baton.cli.up import down, up
from baton.errors import BatonError, ConfigError

app = typer.Typer(
    name="baton",
    help="Reinforcement learning for language models, as a relay of services.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (run, up, down, status, logs):
    app.command()(command)


def main() -> int:
    """Entry point. Exit codes: 0 done, 1 failed, 2 wrong command line or run file, 128 + n ended by signal n."""
    try:
        app()
    except ConfigError as error:
        return _fail(error, 2)
    except BatonError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130
    return 0


def _fail(error: BatonError, code: int) -> int:
    sys.stdout.flush()
    typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(str(error), err=True)
    return code
