"""The `baton` command: start a run's services on this machine, watch the run, end everything.

What a command does is imported when it is called, so that `baton --help` and `baton logs` answer at once.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baton.cli.ckpt_commands import ckpt_app
from baton.cli.options import (
    DEFAULT_OUTPUT_DIR,
    App,
    AsJson,
    Buffer,
    Deployment,
    NewOutputDir,
    NewRunId,
    OutputDir,
    Overrides,
    RunFile,
    RunId,
    StoredRun,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from baton.local.plan import Plan

app = typer.Typer(
    name="baton",
    help="Reinforcement learning for language models, as a relay of services.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
relay_app = typer.Typer(
    help="Look at the samples that a buffer keeps, prove that none is lost or trained twice, and remove those of a run.\n\n"
    "RUN is a run's id in the store; one store may hold many, so no command guesses it.",
    no_args_is_help=True,
)
app.add_typer(relay_app, name="relay")
app.add_typer(ckpt_app, name="ckpt")


@app.command()
def run(
    run_file: Annotated[
        Path,
        typer.Argument(metavar="RUNFILE", help="The run's YAML file; to resume, a run's directory too.", show_default=False),
    ],
    app: App = None,
    overrides: Overrides = None,
    run_id: NewRunId = None,
    output_dir: NewOutputDir = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run from its newest checkpoint: the latest, or that of --run-id.")
    ] = False,
) -> None:
    """Start the services of RUNFILE, train, and end the services again.

    Ctrl-C stops the run in order; a second one ends everything at once.
    """
    from baton.cli.run import run_in_foreground
    from baton.local.resume import plan_run

    plan, remarks = plan_run(run_file, overrides or (), app=app, run_id=run_id, output_dir=output_dir, resume=resume)
    _remark(remarks)
    raise typer.Exit(run_in_foreground(plan))


@app.command()
def up(
    run_file: RunFile, app: App = None, overrides: Overrides = None, run_id: NewRunId = None, output_dir: NewOutputDir = None
) -> None:
    """Start the services of RUNFILE in the background, and return when all are ready.

    It starts no run: a program of yours does, through the coordinator's address.
    """
    from baton.cli.background import start_in_background

    start_in_background(_plan(run_file, overrides, app, run_id, output_dir))


@app.command()
def down(run_id: RunId = None, output_dir: OutputDir = DEFAULT_OUTPUT_DIR) -> None:
    """End a deployment, and every process of it."""
    from baton.cli.down import end_deployment

    end_deployment(output_dir, run_id)


@app.command()
def status(as_json: AsJson = False, run_id: RunId = None, output_dir: OutputDir = DEFAULT_OUTPUT_DIR) -> None:
    """Show whether a deployment's services answer, and how far its run is."""
    from baton.cli.status import show_status

    show_status(output_dir, run_id, as_json=as_json)


@app.command()
def logs(
    service: Annotated[str | None, typer.Argument(help="One service, as trainer or rollout-0. (default: all)")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as lines arrive, until Ctrl-C.")] = False,
    run_id: RunId = None,
    output_dir: OutputDir = DEFAULT_OUTPUT_DIR,
) -> None:
    """Print the logs of a deployment, each line under its service's name."""
    from baton.cli.logs import print_logs

    print_logs(output_dir, run_id, service, follow=follow)


@relay_app.command("ls")
def relay_ls(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="All episodes of this run. (default: each run's newest)")
    ] = None,
    as_json: AsJson = False,
    buffer: Buffer = None,
    run_id: Deployment = None,
    output_dir: OutputDir = DEFAULT_OUTPUT_DIR,
) -> None:
    """List the episodes in the store by what has become of their samples.

    Issued (of those, generated) and failed are prompt groups. Leased, trained and acked are samples of the present pass.
    """
    from baton.cli.relay import find_buffer, show_episodes

    show_episodes(find_buffer(buffer, output_dir, run_id), run, as_json=as_json)


@relay_app.command("show")
def relay_show(
    run: StoredRun,
    sample: Annotated[str, typer.Argument(metavar="SAMPLE", help="The sample's id.", show_default=False)],
    as_json: AsJson = False,
    buffer: Buffer = None,
    run_id: Deployment = None,
    output_dir: OutputDir = DEFAULT_OUTPUT_DIR,
) -> None:
    """Show one sample: where it is, what it holds, and what its steps are. With --json, arrays are whole."""
    from baton.cli.relay import find_buffer, show_sample

    show_sample(find_buffer(buffer, output_dir, run_id), run, sample, as_json=as_json)


@relay_app.command("audit")
def relay_audit(
    run: StoredRun,
    as_json: AsJson = False,
    buffer: Buffer = None,
    run_id: Deployment = None,
    output_dir: OutputDir = DEFAULT_OUTPUT_DIR,
) -> None:
    """Prove from the store alone that nothing of RUN is lost, trained twice or left over. Exit code 1: it has faults.

    Best on a run that stands still: what changes meanwhile may look like a fault.
    """
    from baton.cli.relay import find_buffer, show_audit

    if not show_audit(find_buffer(buffer, output_dir, run_id), run, as_json=as_json):
        raise typer.Exit(1)


@relay_app.command("rm")
def relay_rm(
    run: StoredRun,
    force: Annotated[bool, typer.Option("--force", help="Also a run whose coordinator never said that it ended.")] = False,
    buffer: Buffer = None,
    run_id: Deployment = None,
    output_dir: OutputDir = DEFAULT_OUTPUT_DIR,
) -> None:
    """Remove all that RUN has in the store; it cannot be resumed then. Refused while it lives. Its files stay."""
    from baton.cli.relay import find_buffer
    from baton.cli.relay_rm import remove_run

    remove_run(find_buffer(buffer, output_dir, run_id), run, force=force)


def main() -> int:
    """Entry point. Exit codes: 0 done, 1 failed, 2 wrong command line or run file, 128 + n ended by signal n."""
    from baton.errors import BatonError, ConfigError

    try:
        app()
    except ConfigError as error:
        return _fail(error, 2)
    except BatonError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130
    return 0


def _fail(error: Exception, code: int) -> int:
    sys.stdout.flush()
    typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(str(error), err=True)
    return code


def _plan(
    run_file: Path, overrides: list[str] | None, app: str | None, run_id: str | None, output_dir: Path | None
) -> "Plan":
    """The deployment to start, after its remarks are printed."""
    from baton.local.plan import make_plan

    plan, remarks = make_plan(run_file, overrides or (), app=app, run_id=run_id, output_dir=output_dir)
    _remark(remarks)
    return plan


def _remark(remarks: "Sequence[str]") -> None:
    from baton.cli.console import console

    for remark in remarks:
        console.say(f"note: {remark}")
