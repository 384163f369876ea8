"""The commands of `baton ckpt`: their arguments, and which function of `ckpt.py` does each."""

from pathlib import Path
from typing import Annotated

import typer

from baton.cli.options import AsJson

ckpt_app = typer.Typer(
    help="Look at checkpoints, verify them, and carry models in and out.\n\nNo command changes a checkpoint, or writes over "
    "anything that is there.",
    no_args_is_help=True,
)

Checkpoint = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint's directory.", show_default=False)]
Checkpoints = Annotated[
    Path,
    typer.Argument(
        metavar="PATH", help="A checkpoint's directory, or one that holds checkpoints, as a run's.", show_default=False
    ),
]
Target = Annotated[Path, typer.Argument(metavar="TARGET", help="The directory to make.", show_default=False)]


@ckpt_app.command("inspect")
def inspect(path: Checkpoints, as_json: AsJson = False) -> None:
    """Show a checkpoint's step, models, layout and tensors; of several in a directory, all but the tensors."""
    from baton.cli.ckpt import show_checkpoint

    show_checkpoint(path, as_json=as_json)


@ckpt_app.command("verify")
def verify(path: Checkpoints) -> None:
    """Read every byte, and name each file that is torn, changed or missing. Exit code 1: there is one."""
    from baton.cli import ckpt

    if not ckpt.verify(path):
        raise typer.Exit(1)


@ckpt_app.command("reshard")
def reshard(
    path: Checkpoint,
    target: Target,
    tensor: Annotated[int, typer.Option(help="Tensor-parallel size.")] = 1,
    pipeline: Annotated[int, typer.Option(help="Pipeline-parallel size.")] = 1,
    data: Annotated[int, typer.Option(help="Data-parallel size.")] = 1,
) -> None:
    """Write CHECKPOINT anew as ranks of another layout would have.

    Trainers with adaptive_parallel_strategy_on_checkpoint, which is the default, need no such copy. It runs as many
    processes as the layout has, which hold the whole model and its optimizer state in this machine's memory.
    """
    from baton.cli import ckpt

    ckpt.reshard(path, target, tensor=tensor, pipeline=pipeline, data=data)


@ckpt_app.command("import-hf")
def import_hf(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hugging Face directory, hub id, or built-in name.", show_default=False)
    ],
    target: Target,
    role: Annotated[str, typer.Option(help="The role whose model it is, as in the run file's models.")] = "ppo_policy",
) -> None:
    """Write a checkpoint with the weights of a Hugging Face model, for models.<role>.load."""
    from baton.cli import ckpt

    ckpt.import_hf(model, target, role)


@ckpt_app.command("export-hf")
def export_hf(
    path: Checkpoint,
    target: Target,
    role: Annotated[str | None, typer.Option(help="Which model. (default: the checkpoint's first)")] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the tokenizer is. (default: where the run had it)")
    ] = None,
) -> None:
    """Write a model of CHECKPOINT as Hugging Face files: safetensors, config, tokenizer."""
    from baton.cli import ckpt

    ckpt.export_hf(path, target, role, model)
