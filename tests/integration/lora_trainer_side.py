"""`torchrun lora_trainer_side.py DIRECTORY`: trains every case's adapter with the trainer, under each layout of so many
ranks, and exports it."""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lora_cases import ADAM, CASES, COMPARED, STEPS
from scored_models import samples

from baton.config.lora import LoraConfig
from baton.config.trainable import TrainableConfig
from services.trainer.megatron.parallel import Layout
from services.trainer.packing import pack

LAYOUTS: dict[int, dict[str, tuple[int, int, dict[str, Any]]]] = {
    1: {"tp1": (1, 1, {"recompute_granularity": "full"})},
    2: {"tp2": (2, 1, {}), "tp2-sequence": (2, 1, {"sequence_parallel": True}), "pp2": (1, 2, {})},
}
"""Ranks -> layout -> tensor- and pipeline-parallel size, further options."""


def everywhere(policy: Any, layout: Layout, *, gradients: bool) -> dict[str, np.ndarray]:
    """Whole factors, or their gradients, of all ranks' parts; those that several ranks hold are compared bit for bit."""
    from services.trainer.megatron.lora.factors import factors_of

    parts = []
    for factor in factors_of(policy):
        held = factor.parameter.main_grad if gradients else factor.parameter.data
        rows, columns = factor.matrix.shape
        parts.append((factor.name, factor.shape, factor.rows, factor.columns, held[:rows, :columns].float().numpy()))
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, parts)
    whole: dict[str, np.ndarray] = {}
    for name, shape, rows, columns, values in (part for rank in ranks for part in rank):
        place = whole.setdefault(name, np.full(shape, np.nan, np.float32))[slice(*rows), slice(*columns)]
        assert np.isnan(place).all() or np.array_equal(place, values), f"{name} differs between ranks"
        place[:] = values
    return whole


def last_stage(found: list[torch.Tensor]) -> np.ndarray:
    """What the last stage has, on every rank."""
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, torch.cat(found).numpy() if found else None)
    return ranks[-1]


def train(layout: Layout, case: Path, kind: str, options: dict[str, Any]) -> dict[str, np.ndarray]:
    """As `lora_peft_side.train`, from PEFT's own file; writes what is exported."""
    from services.trainer.megatron.engine import Engine
    from services.trainer.megatron.model import TokenScores

    _, sizes, _, further = CASES[case.name]
    lora = LoraConfig(
        enable_lora=True, lora_dim=sizes["r"], lora_scaling=sizes["lora_alpha"], load=str(case / "peft"), **further
    )
    config = TrainableConfig(
        dtype="float32", clip_grad=0.0, lr=ADAM["lr"], adam_eps=ADAM["eps"], weight_decay=ADAM["weight_decay"],
        lora=lora, **options,
    )  # fmt: skip
    engine = Engine(config, layout, case / "model", total_steps=STEPS)
    batch = samples()
    tokens = int(batch.response_ids.lengths.sum())
    halves = [pack(batch.take(range(7))), pack(batch.take(range(7, 10)))]

    def loss(_: int, scores: TokenScores) -> tuple[torch.Tensor, None]:
        return -scores.logprobs_N.sum() / tokens, None

    found = {"logprobs": last_stage(engine.score(halves))}
    for step in range(STEPS if case.name in COMPARED else 1):
        engine.forward_backward(halves, loss)
        norm = engine.finish()
        if step == 0:
            gradients = everywhere(engine.policy, layout, gradients=True)
            found |= {f"gradient of {name}": value for name, value in gradients.items()}
            found["grad_norm"] = np.array(norm)
        engine.apply(norm)
    found |= {f"trained {name}": value for name, value in everywhere(engine.policy, layout, gradients=False).items()}
    export(engine, layout, case, kind)
    return found | {"trained": last_stage(engine.score(halves))}


def export(engine: Any, layout: Layout, case: Path, kind: str) -> None:
    from services.trainer.megatron.hf import export_hf, finish_export
    from services.trainer.megatron.lora.peft_files import finish_adapter, write_part

    merged, adapter = case / f"{kind}-merged", case / f"{kind}-adapter"
    for directory in (merged, adapter):
        directory.mkdir(exist_ok=True)
    export_hf(engine.policy, layout, merged)
    write_part(engine.policy, layout, adapter)
    dist.barrier()
    if layout.world_rank == 0:
        finish_export(engine.source, merged, torch.float32, engine.shape)
        finish_adapter(adapter, engine.lora, engine.shape, str(engine.source), engine.base)
    dist.barrier()


def main(directory: Path) -> None:
    layouts = LAYOUTS[int(os.environ["WORLD_SIZE"])]
    tensor, pipeline, _ = next(iter(layouts.values()))
    Layout.start(tensor=tensor, pipeline=pipeline, device="cpu", timeout_s=60, seed=0)
    for kind, (tensor, pipeline, options) in layouts.items():
        layout = Layout.arrange(tensor=tensor, pipeline=pipeline, timeout_s=60, seed=0)
        for name in CASES:
            found = train(layout, directory / name, kind, options)
            if layout.world_rank == 0:
                np.savez(directory / name / f"{kind}.npz", **found)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
