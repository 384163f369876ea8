"""The options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

RunFile = Annotated[Path, typer.Argument(metavar="RUNFILE", help="The run's YAML file.", show_default=False)]
App = Annotated[
    str | None,
    typer.Option(metavar="MODULE:ATTR", help="Your program: an engine with flows, rewards or prompts of your own."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one option of the run file; may be repeated."),
]
NewRunId = Annotated[str | None, typer.Option(help="Name of the run. (default: <exp_name>-<date>-<time>)")]
NewOutputDir = Annotated[
    Path | None, typer.Option(help="Directory that holds the runs' directories. (default: runtime.output_dir)")
]
RunId = Annotated[str | None, typer.Option(help="Which run. (default: the latest)")]
OutputDir = Annotated[Path, typer.Option(help="Directory that holds the runs' directories.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Buffer = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="The buffer to ask. (default: that of the deployment)")
]
StoredRun = Annotated[str, typer.Argument(metavar="RUN", help="The run's id, as `baton relay ls` lists it.")]
Deployment = Annotated[
    str | None, typer.Option("--run-id", help="The deployment whose buffer is asked. (default: the latest)")
]

DEFAULT_OUTPUT_DIR = Path("runs")
"""The default of `runtime.output_dir`."""
