"""`torchrun splits_side.py MODEL OUT`: five GRPO steps for each case of so many ranks in `splits.py`, from the same weights
on the same batches.

Writes OUT/NAME.json (loss and gradient norm by step) and a
directory OUT/NAME of the weights after the last step.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from splits import CASES, GROUP, SIZE, STEPS, batch_of

from baton.clients.buffer import MicroBatch
from baton.config.policy_gradient import GrpoConfig
from baton.config.trainable import TrainableConfig
from services.trainer.megatron.parallel import Layout


def leased(step: int, layout: Layout, case: dict[str, Any]) -> list[MicroBatch]:
    """This rank's micro-batches of a step, as the buffer hands them out."""
    samples, distinct = batch_of(step), case.get("distinct", SIZE)
    if case.get("wrapped"):  # the end of an episode of `distinct` samples, which wraps around
        samples = samples.take(np.arange(SIZE) % distinct)
        samples.sample_ids[:] = [str(i) for i in range(SIZE)]
    else:
        samples = samples.take(range(distinct))
    size = case.get("micro_batch", GROUP)
    cuts = [range(first, first + size) for first in range(0, len(samples), size)]
    each = len(cuts) // layout.data_size
    mine = cuts[layout.data_rank * each : (layout.data_rank + 1) * each]
    return [MicroBatch("", samples.take(cut), np.array([number >= distinct for number in cut])) for cut in mine]


def train(layout: Layout, model: Path, out: Path, case: dict[str, Any]) -> list[dict[str, float]]:
    """Loss and gradient norm of each step, on every rank."""
    from services.trainer.megatron.engine import Engine
    from services.trainer.megatron.hf import export_hf
    from services.trainer.merging import merged
    from services.trainer.objectives import objective_for
    from services.trainer.step import train_step

    # at Adam's usual epsilon a gradient that is nothing but rounding becomes a whole step
    config = TrainableConfig(dtype="float32", lr=1e-3, adam_eps=1e-5, **case.get("options", {}))
    engine, objective = Engine(config, layout, model, total_steps=STEPS), objective_for(GrpoConfig())
    steps = []
    for step in range(STEPS):
        batches = leased(step, layout, case)
        if budget := case.get("tokens"):
            batches = merged(batches, budget, share_prefix=config.share_prefix)
        report = train_step(objective, {"ppo_policy": engine}, batches, tail=case.get("tail", "wrap"))
        loss = torch.tensor([report.sums.get("loss", 0.0)], dtype=torch.float64)
        dist.all_reduce(loss, group=dist.group.WORLD)
        steps.append({"loss": float(loss), "grad_norm": report.updates["ppo_policy"].grad_norm})
    if layout.data_rank == 0:
        out.mkdir(exist_ok=True)
        export_hf(engine.policy, layout, out)
    dist.barrier()
    return steps


def main(model: Path, out: Path) -> None:
    """The ranks take up one layout after the other."""
    layouts = CASES[int(os.environ["WORLD_SIZE"])]
    tensor, pipeline = next(iter(layouts))
    Layout.start(tensor=tensor, pipeline=pipeline, device="cpu", timeout_s=60, seed=0)
    for (tensor, pipeline), cases in layouts.items():
        layout = Layout.arrange(tensor=tensor, pipeline=pipeline, timeout_s=60, seed=0)
        for name, case in cases.items():
            steps = train(layout, model, out / name, case)
            if layout.world_rank == 0:
                (out / f"{name}.json").write_text(json.dumps(steps))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
