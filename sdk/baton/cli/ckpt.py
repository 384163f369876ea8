"""`baton ckpt`: what a checkpoint holds, whether every byte of it is what was written, and the same in other forms.

Looking and verifying read the files alone. What needs the tensors is done by a process of the trainer's package, on the CPU.
"""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.filesize import decimal
from rich.table import Column, Table
from rich.text import Text

from baton.checkpoint_files import INDEX, checkpoints_in, faults, has_books, read_marker
from baton.cli.console import console
from baton.errors import ConfigError, InvalidRequestError, NotFoundError, ServiceFaultError
from baton.local.store import LOOPBACK, free_port

TOOL = "services.trainer.checkpoint_tool"
OPTIMIZER = "optimizer.state."


def show_checkpoint(path: Path, *, as_json: bool) -> None:
    """Prints what a checkpoint holds, or one line for each in a directory of them. Raises NotFoundError if there is none."""
    paths = _found(path)
    described = [_described(one) for one in paths]
    if as_json:
        typer.echo(json.dumps({"checkpoints": described}))
        return
    for one in described:
        _print_facts(one)
        if len(described) == 1:
            _print_tensors(one["tensors"])


def verify(path: Path) -> bool:
    """Prints each file of a checkpoint, or of all in a directory, that is not what was written; whether there is none."""
    clean = True
    for one in _found(path, also_damaged=True):
        found = list(faults(one))
        for fault in found:
            console.say(f"{one.name}/{fault}")
        if not found:
            console.say(f"{one.name}: every byte is what was written")
        clean = clean and not found
    return clean


def reshard(path: Path, target: Path, *, tensor: int, pipeline: int, data: int) -> None:
    """Writes a checkpoint anew, as that layout would have. Raises ConfigError for sizes below 1, and what cannot be done."""
    if min(tensor, pipeline, data) < 1:
        raise ConfigError(f"--tensor, --pipeline, --data: got {tensor}, {pipeline}, {data}; each must be 1 or more")
    read_marker(path)
    launcher = [
        "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(tensor * pipeline * data),
        "--master-addr", LOOPBACK, "--master-port", str(free_port()), "-m",
    ]  # fmt: skip
    sizes = ["--tensor", str(tensor), "--pipeline", str(pipeline)]
    _tool([*launcher, TOOL, "reshard", str(path.absolute()), str(target.absolute()), *sizes])


def import_hf(model: str, target: Path, role: str) -> None:
    """Writes a checkpoint of `role` with the weights of a Hugging Face model."""
    _tool([TOOL, "import-hf", model, str(target.absolute()), "--role", role])


def export_hf(path: Path, target: Path, role: str | None, model: Path | None) -> None:
    """Writes one model of a checkpoint as a Hugging Face directory."""
    options = ["--role", role] if role else []
    options += ["--model", str(model.absolute())] if model else []
    _tool([TOOL, "export-hf", str(path.absolute()), str(target.absolute()), *options])


def _tool(command: Sequence[str]) -> None:
    """Runs a module to its end, and prints what it says. Raises InvalidRequestError with the reason that it gives, or
    ServiceFaultError with the end of its output."""
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        console.say(done.stdout.strip())
        for line in done.stderr.splitlines():
            if line.startswith("note: "):
                console.say(line)
        return
    reasons = [line.partition("error: ")[2] for line in done.stderr.splitlines() if line.startswith("error: ")]
    if reasons:
        raise InvalidRequestError(reasons[0])
    raise ServiceFaultError(f"{command[0]} failed: {done.stderr.strip()[-2000:]}")


def _found(path: Path, *, also_damaged: bool = False) -> list[Path]:
    """The checkpoint itself, or all in a directory, or all of a run's directory."""
    if has_books(path) or path.suffix == ".partial":
        return [path]
    for directory in (path, path / "checkpoints"):
        found = checkpoints_in(directory)
        if also_damaged:
            others = {*directory.glob("step-*.partial"), *filter(has_books, directory.glob("*"))}
            found += sorted(others.difference(found))
        if found:
            return found
    raise NotFoundError(f"{path} is no checkpoint, and holds none; a run's are in <output_dir>/<run id>/checkpoints")


def _described(path: Path) -> dict[str, Any]:
    marker = read_marker(path)
    try:
        tensors = json.loads((path / INDEX).read_text())["tensors"]
    except (OSError, ValueError, KeyError) as error:
        raise InvalidRequestError(f"{path / INDEX} is damaged ({error}), as `baton ckpt verify` says too") from None
    rows = [
        {"name": name, "dtype": entry["dtype"], "shape": entry["shape"], "parts": len(entry["chunks"])}
        for name, entry in sorted(tensors.items())
    ]
    roles = {
        role: {
            "head": known["head"], "dtype": known["dtype"], "source": known["source"], "updates": known["updates"],
            "family": known["shape"]["family"], "layers": known["shape"]["num_layers"],
            "parameters": sum(math.prod(row["shape"]) for row in rows if _is_weight(row["name"], role, marker)),
        }
        for role, known in marker["roles"].items()
    }  # fmt: skip
    return {
        "path": str(path), "global_step": marker["global_step"], "layout": marker["layout"], "lineage": marker["lineage"],
        "bytes": sum(marker["files"].values()), "files": marker["files"], "roles": roles, "tensors": rows,
    }  # fmt: skip


def _is_weight(name: str, role: str, marker: dict[str, Any]) -> bool:
    prefixes = {other: known["prefix"] for other, known in marker["roles"].items()}
    owner = next((other for other, prefix in prefixes.items() if prefix and name.startswith(prefix)), None)
    own = owner == role if owner else not prefixes[role]
    return own and not name.removeprefix(prefixes[role]).startswith(OPTIMIZER)


def _print_facts(one: dict[str, Any]) -> None:
    sizes = " x ".join(f"{axis} {size}" for axis, size in one["layout"].items())
    console.say(
        f"{one['path']}: step {one['global_step']}, {decimal(one['bytes'])} in {len(one['files'])} files, written by {sizes}"
    )
    for role, known in one["roles"].items():
        state = "no optimizer state" if known["updates"] is None else f"Adam after {known['updates']} updates"
        console.say(
            f"  {role}: {known['family']} of {known['layers']} layers, {known['parameters']:,} parameters in "
            f"{known['dtype']}, makes {known['head']}, {state}"
        )


def _print_tensors(rows: Sequence[dict[str, Any]]) -> None:
    table = Table("tensor", "dtype", "shape", Column("parts", justify="right"), box=None)
    for row in rows:
        cells = (row["name"], row["dtype"], " x ".join(map(str, row["shape"])), str(row["parts"]))
        table.add_row(*(Text(cell) for cell in cells))
    table.width = console.measure(table, options=console.options.update(max_width=100_000)).maximum
    console.print(table, crop=False)
