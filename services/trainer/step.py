"""One optimizer step: lease -> pack -> forward and backward -> update. Runs on every rank, whatever the algorithm.

buffer ──Lease──▶ micro-batches of this data-parallel rank ──▶ packed rows ──▶ pipeline ──▶ gradients ──▶ update
                                └──▶ objective: what the losses need to know of the global batch ──┘
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from baton.clients.buffer import MicroBatch
from services.trainer.megatron.engine import Engine, Update
from services.trainer.megatron.hosted import Output
from services.trainer.megatron.model import TokenScores
from services.trainer.objectives.base import DataParallel, Loss, Objective, Plan
from services.trainer.packing import PackedBatch, pack


@dataclass(frozen=True, slots=True)
class Counted:
    """What went through the model, on the one rank of each data-parallel copy that counts; 0 elsewhere."""

    samples: int
    response_tokens: int
    computed_tokens: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """This rank's micro-batches, ready for the models, and the losses on them."""

    rows: list[PackedBatch]
    plan: Plan
    counted: Counted


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one rank did. `sums` are this rank's parts; ranks that hold no scores have none."""

    updates: dict[str, Update]
    """By role."""
    sums: dict[str, float]
    counted: Counted


def prepare(objective: Objective, engine: Engine, batches: Sequence[MicroBatch], *, tail: str) -> Prepared:
    """Packs micro-batches for `engine`, and plans the losses. Collective."""
    layout = engine.layout
    parts = [objective.part(batch, tail, layout.device) for batch in batches]
    options = {"share_prefix": engine.share_prefix, "pad_samples": engine.pad_samples}
    rows = [pack(batch.samples, feed_last=engine.head == "scores", **options) for batch in batches]
    plan = objective.plan(parts, DataParallel(layout.data_rank, layout.data_size, engine.sum_over_data_parallel))
    if layout.tensor_rank or layout.pipeline_rank:
        return Prepared(rows, plan, Counted(0, 0, 0))
    counted = Counted(
        samples=sum(len(part.samples) for part in parts),
        response_tokens=int(sum(part.mask_N.sum() for part in parts)),
        computed_tokens=sum(len(row.tokens_T) for row in rows),
    )
    return Prepared(rows, plan, counted)


def train_step(
    objective: Objective, engines: Mapping[str, Engine], batches: Sequence[MicroBatch], *, tail: str
) -> StepReport:
    """Accumulates the gradients of the global batch's losses and updates the weights of ppo_policy, and those of ppo_value
    if it is there, once.

    Raises InvalidRequestError, with all weights unchanged, if a gradient may not be skipped any more; see `Engine.finish`.
    """
    policy, critic = engines["ppo_policy"], engines.get("ppo_value")
    for engine in engines.values():
        engine.clear()  # what a loop of somebody's own may have left
    prepared = prepare(objective, policy, batches, tail=tail)
    plan, counted = prepared.plan, prepared.counted
    sums = backward(policy, prepared.rows, plan.loss).sums
    if critic is not None:
        sums |= backward(critic, prepared.rows, value_loss_of(plan)).sums
    norms = {role: engine.finish() for role, engine in engines.items()}
    updates = {role: engine.apply(norms[role]) for role, engine in engines.items()}
    if not updates["ppo_policy"].skipped:
        objective.advance(plan.totals)
    if sums and policy.layout.data_rank == 0:  # all ranks know these, and the ranks' sums are added up
        sums |= plan.metrics
    return StepReport(updates, sums, counted)


def value_loss_of(plan: Plan) -> Loss:
    """The critic's loss. Raises ValueError if the algorithm has none."""
    if plan.value_loss is None:
        raise ValueError("this algorithm trains no critic; give it no value engine")
    return plan.value_loss


@dataclass(frozen=True, slots=True)
class Backward:
    """`sums`: what the losses reported, on the ranks that own it. `outputs`: what they were computed from, one tensor per
    micro-batch, on the last pipeline stage."""

    sums: dict[str, float]
    outputs: list[torch.Tensor]


def backward(engine: Engine, rows: Sequence[PackedBatch], loss: Loss, scale: float = 1.0) -> Backward:
    """Adds the gradients of all micro-batches, times `scale`. Tensor-parallel ranks of the last pipeline stage hold the same
    numbers, of which one rank owns the sums."""

    def as_engine_wants(index: int, output: Output) -> tuple[torch.Tensor, Any]:
        found = loss(index, output)
        scores = output.logprobs_N if isinstance(output, TokenScores) else output
        return found.loss * scale, (found.sums, scores.detach())

    reports = engine.forward_backward(rows, as_engine_wants)
    outputs = [scores for _, scores in reports]
    if not reports or engine.layout.tensor_rank:
        return Backward({}, outputs)
    return Backward({name: float(sum(sums[name] for sums, _ in reports)) for name in reports[0][0]}, outputs)
