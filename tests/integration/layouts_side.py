"""One training, continued from checkpoints under every layout, for `test_checkpoint_layouts.py`."""

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from splits_side import leased

from baton.config.policy_gradient import GrpoConfig
from baton.config.trainable import TrainableConfig
from services.trainer.megatron.parallel import Layout

LAYOUTS: dict[int, dict[str, tuple[int, int]]] = {1: {"tp1": (1, 1)}, 2: {"dp2": (1, 1), "tp2": (2, 1), "pp2": (1, 2)}}
"""By number of ranks: name -> (TP, PP)."""
WRITERS = [name for layouts in LAYOUTS.values() for name in layouts]
READS = [
    *((writer, True, 2) for writer in WRITERS), ("tp1", True, 0), ("dp2", True, 0), ("tp1", False, 0),
]  # fmt: skip
"""(checkpoint's layout, whether its optimizer is distributed, its step): what is read under every layout. In this order one
engine reads them, and trains after each; what is left of a later step must not show."""
Losses = dict[tuple[str, str, bool, int], list[float]]
"""(layout, then what READS says) -> losses of the next two steps."""


def work(rank: int, size: int, port: int, model: Path, directory: Path, *, writes: bool, reads: bool) -> Losses:
    """Under each layout of so many ranks: trains and writes checkpoints; then reads all and trains on."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    Layout.start(tensor=1, pipeline=1, device="cpu", timeout_s=60, seed=0)
    found: Losses = {}
    for step in [written] * writes + [continued] * reads:
        for name, (tensor, pipeline) in LAYOUTS[size].items():
            layout = Layout.arrange(tensor=tensor, pipeline=pipeline, timeout_s=60, seed=0)
            for distributed in (True, False):
                found |= step(layout, name, model, directory, distributed)
    dist.destroy_process_group()
    return found


def written(layout: Layout, name: str, model: Path, directory: Path, distributed: bool) -> Losses:
    """Trains four steps and writes checkpoints that READS wants; the losses of the two steps after each."""
    from services.trainer.megatron import checkpoint

    wanted = [at for writer, kind, at in READS if (writer, kind) == (name, distributed)]
    engine, losses = start(layout, model, distributed), []
    for step in range(max(wanted, default=-2) + 2):
        if step in wanted:
            checkpoint.save({"ppo_policy": engine}, directory / name / str(distributed), {"global_step": step})
        losses.append(loss_of(engine, layout, step))
    return {(name, "itself", distributed, at): losses[at : at + 2] for at in wanted}


def continued(layout: Layout, name: str, model: Path, directory: Path, distributed: bool) -> Losses:
    """Reads one checkpoint after the other into one engine."""
    from services.trainer.megatron import checkpoint

    found, engine = {}, start(layout, model, distributed)
    for writer, kind, at in READS:
        if kind == distributed:
            path = directory / writer / str(distributed) / f"step-{at:08d}"
            assert checkpoint.load({"ppo_policy": engine}, path) == {"global_step": at}
            found[name, writer, distributed, at] = [loss_of(engine, layout, step) for step in (at, at + 1)]
    return found


def start(layout: Layout, model: Path, distributed: bool) -> Any:
    from services.trainer.megatron.engine import Engine

    config = TrainableConfig(dtype="float32", lr=1e-3, adam_eps=1e-5, use_distributed_optimizer=distributed)
    return Engine(config, layout, model, total_steps=10)


def loss_of(engine: Any, layout: Layout, step: int) -> float:
    """Of one optimizer step, the same on every rank."""
    from services.trainer.objectives import objective_for
    from services.trainer.step import train_step

    report = train_step(objective_for(GrpoConfig()), {"ppo_policy": engine}, leased(step, layout, {}), tail="wrap")
    loss = torch.tensor([report.sums.get("loss", 0.0)], dtype=torch.float64)
    dist.all_reduce(loss)
    return float(loss)
