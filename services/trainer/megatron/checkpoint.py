"""Megatron's distributed checkpoint of weights, optimizer and schedule; a killed save never leaves a loadable half."""

import json
from pathlib import Path

import torch.distributed as dist
from megatron.core import dist_checkpointing

from baton.errors import NotFoundError
from services.trainer import whole_directory
from services.trainer.megatron.checkpoint_writer import write_without_forking
from services.trainer.megatron.engine import Engine

write_without_forking()

MARKER = "baton.json"
"""Written last, before the directory gets its final name."""


def _state(engine: Engine, *, loading: bool) -> dict:
    weights = engine.policy.sharded_state_dict()
    return {"model": weights, "optimizer": engine.optimizer.sharded_state_dict(weights, is_loading=loading)}


def save(engine: Engine, directory: Path, facts: dict[str, object]) -> Path:
    """Writes `step-<global_step>` into `directory`; `facts` must hold `global_step`. A collective, which
    rank 0 leaves last. Returns its path."""
    target = directory / f"step-{facts['global_step']:08d}"
    partial = whole_directory.begin(target, empty=dist.get_rank() == 0)
    dist.barrier()
    dist_checkpointing.save(_state(engine, loading=False), str(partial))
    dist.barrier()
    if dist.get_rank() == 0:
        schedule = {"schedule": engine.schedule.state_dict()}
        (partial / MARKER).write_text(json.dumps(facts | schedule, indent=1))
        whole_directory.finish(target)
    return target


def load(engine: Engine, path: Path) -> dict[str, object]:
    """Restores what `save` wrote, under any parallel layout. A collective. Returns the facts.

    Raises NotFoundError if `path` is not a whole checkpoint.
    """
    if path.suffix == whole_directory.SUFFIX or not (path / MARKER).is_file():
        raise NotFoundError(f"{path} is not a whole checkpoint; take a directory that SaveCheckpoint returned")
    facts = json.loads((path / MARKER).read_text())
    state = dist_checkpointing.load(_state(engine, loading=True), str(path))
    engine.policy.load_state_dict(state["model"])
    engine.optimizer.load_state_dict(state["optimizer"])
    engine.schedule.load_state_dict(facts.pop("schedule"))
    return facts


def size_of(path: Path) -> int:
    """Bytes of all files under a directory."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
