"""One optimizer step: lease -> pack -> forward and backward -> update. Runs on every rank, whatever the algorithm.

buffer ──Lease──▶ micro-batches of this data-parallel rank ──▶ packed rows ──▶ pipeline ──▶ gradients ──▶ update
                                └──▶ objective: what the losses need to know of the global batch ──┘
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from baton.clients.buffer import MicroBatch
from services.trainer.megatron.engine import Engine, Update
from services.trainer.objectives.base import DataParallel, Loss, Objective, Plan
from services.trainer.packing import PackedBatch, pack


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one rank did. `sums` are this rank's parts; ranks that hold no scores have none."""

    update: Update
    value_update: Update | None
    """Of the critic, if it was trained."""
    sums: dict[str, float]
    samples: int
    response_tokens: int
    computed_tokens: int


def train_step(
    objective: Objective, engine: Engine, batches: Sequence[MicroBatch], *, tail: str, share_prefix: bool,
    value_engine: Engine | None = None,
) -> StepReport:  # fmt: skip
    """Accumulates the gradient of the global batch's loss and updates the weights once; the critic's likewise."""
    layout = engine.layout
    parts = [objective.part(batch, tail, layout.device) for batch in batches]
    packed = [pack(batch.samples, share_prefix=share_prefix) for batch in batches]
    plan = objective.plan(parts, DataParallel(layout.data_rank, layout.data_size, engine.sum_over_data_parallel))
    sums = _backward(engine, packed, plan.loss)
    update, value_update = engine.step(), None
    if value_engine is not None:
        sums |= _backward(value_engine, packed, _value_loss_of(plan))
        value_update = value_engine.step()
    objective.restore(plan.state)
    if sums and layout.data_rank == 0:  # all ranks know these, and the ranks' sums are added up
        sums |= plan.metrics
    counts_here = layout.tensor_rank == 0 and layout.pipeline_rank == 0
    return StepReport(
        update=update,
        value_update=value_update,
        sums=sums,
        samples=sum(len(part.samples) for part in parts) if counts_here else 0,
        response_tokens=int(sum(part.mask_N.sum() for part in parts)) if counts_here else 0,
        computed_tokens=sum(len(row.tokens_T) for row in packed) if counts_here else 0,
    )


def _value_loss_of(plan: Plan) -> Loss:
    if plan.value_loss is None:
        raise ValueError("this algorithm trains no critic; give it no value engine")
    return plan.value_loss


def _backward(engine: Engine, packed: Sequence[PackedBatch], loss: Loss) -> dict[str, float]:
    """Gradients of all micro-batches. Returns what the losses reported, on the ranks that own it: tensor-parallel ranks of
    the last pipeline stage hold the same numbers."""

    def as_engine_wants(index: int, scores: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        output = loss(index, scores)
        return output.loss, output.sums

    reports = engine.forward_backward(packed, as_engine_wants)
    if not reports or engine.layout.tensor_rank:
        return {}
    return {name: float(sum(report[name] for report in reports)) for name in reports[0]}
