"""Whether a group's models fit into memory, asked before anything is loaded: a step would find out late, or be killed."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from baton.config import RunConfig
from baton.config.trainable import ForwardConfig, TrainableConfig
from baton.errors import ConfigError
from services.trainer.megatron.family import ModelShape
from services.trainer.megatron.fusion import can_fuse
from services.trainer.megatron.heads import Head
from services.trainer.megatron.memory import ModelMemory, memory_of
from services.trainer.megatron.parallel import Layout
from services.trainer.merging import SCORE_TOKENS

log = logging.getLogger(__name__)
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The largest one that a run may have."""

    tokens: int
    rows: int
    """How many there are in a step on one rank, at least."""
    option: str
    """The option that says how large it is."""


def largest_micro_batch(run: RunConfig, positions: int) -> MicroBatch:
    """Of a run whose model has so many positions; every sample may be as long as the run file allows."""
    runtime = run.runtime
    share = _tokens_of(run, runtime.global_batch_size // run.models.ppo_policy.data_parallel_size, positions)
    if budget := runtime.train_micro_batch_tokens:  # what may not be divided may be larger
        tokens = min(max(budget, _tokens_of(run, run.samples_per_unit, positions)), share)
        return MicroBatch(tokens, -(-share // tokens), "runtime.train_micro_batch_tokens")
    tokens = _tokens_of(run, runtime.train_micro_batch_size, positions)
    return MicroBatch(tokens, -(-share // tokens), "runtime.train_micro_batch_size")


def _tokens_of(run: RunConfig, samples: int, positions: int) -> int:
    """Tokens of so many samples at most. Of a group's prompt there is one, where its samples are sure to be together."""
    policy, trainer, group = run.models.policy, run.models.ppo_policy, run.group_size
    total = min(policy.seq_length, positions)
    response = min((not run.is_offline and policy.response_limit) or total, total)
    together = run.samples_per_unit > 1 or (run.runtime.num_training_epoch == 1 and not run.runtime.relay_enabled)
    if not together or not trainer.share_prefix or trainer.pad_samples:
        return samples * total
    prompts = -(-samples // group) + (1 if samples % group and group % samples else 0)  # one more where both ends cut
    return prompts * (total - response) + samples * response


def free_memory(device: torch.device) -> float:
    """Bytes that this rank may still take: of its GPU, or its share of what this machine or container has left."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = float(lines["MemAvailable"].split()[0]) * 1024
    limit = _CGROUP / "memory.max"
    if limit.exists() and (allowed := limit.read_text().strip()).isdigit():
        cache = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        free = min(free, int(allowed) - int((_CGROUP / "memory.current").read_text()) + int(cache["inactive_file"]))
    return free / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A role's model, before it is loaded."""

    config: TrainableConfig | ForwardConfig
    shape: ModelShape
    head: Head
    base: str | None = None
    """The role whose weights are also this one's."""

    def memory(self, layout: Layout, batch: MicroBatch, **changes: object) -> ModelMemory:
        """What it takes on this rank, with `changes` to the options of a trained model."""
        trained = isinstance(self.config, TrainableConfig)
        return memory_of(
            self.shape, self.config.model_copy(update=changes) if trained else self.config, layout, self.head,
            tokens=batch.tokens if trained else SCORE_TOKENS, rows=batch.rows, shared=self.base is not None,
            fused=layout.device.type == "cuda" and can_fuse(),
        )  # fmt: skip


def require_memory(run: RunConfig, layout: Layout, models: Mapping[str, PlannedModel]) -> None:
    """Raises ConfigError if a rank lacks the memory that a step of these models, by role, is estimated to take; or warns, if
    the run file says so. A collective, before which nothing is loaded."""
    batch = largest_micro_batch(run, min(model.shape.max_positions for model in models.values()))
    free = free_memory(layout.device)
    needs = {role: model.memory(layout, batch) for role, model in models.items()}
    needed = _at_once(needs)
    lacking: list[str | None] = [None] * dist.get_world_size()
    message = _message(layout, needs, batch, needed, free)
    log.info("%s", message)
    least = _at_once({role: model.memory(layout, batch, recompute_granularity="full") for role, model in models.items()})
    refusal = f"{message}. To fit: {_ways_out(models, needs, batch, free, least)}" if needed > free else None
    dist.all_gather_object(lacking, refusal)
    if not any(lacking):
        return
    refusal = next(filter(None, lacking))
    if run.runtime.memory_preflight == "refuse":
        raise ConfigError(
            f"{refusal}. If you know that the samples are shorter than they may be, set runtime.memory_preflight to warn"
        )
    if layout.world_rank == 0:
        log.warning("%s", refusal)


def _at_once(needs: Mapping[str, ModelMemory]) -> float:
    """Bytes when the models take most: all are loaded, and one of them computes."""
    return sum(need.lasting for need in needs.values()) + max(need.passing for need in needs.values())


def _message(
    layout: Layout, needs: Mapping[str, ModelMemory], batch: MicroBatch, needed: float, free: float
) -> str:
    parts = []
    for role, need in needs.items():
        sizes = {
            "weights": need.weights, "gradients": need.gradients, "optimizer": need.optimizer,
            "activations": need.activations, "the layer or head at work": need.working,
        }  # fmt: skip
        parts.append(f"{role}: " + ", ".join(f"{name} {_gib(size)}" for name, size in sizes.items() if size))
    return (
        f"rank {layout.world_rank} needs an estimated {_gib(needed)} GiB of {layout.device.type} memory, of which "
        f"{_gib(free)} GiB are free; with micro-batches of up to {batch.tokens} tokens ({batch.option}), {'; '.join(parts)}"
    )


def _ways_out(
    models: Mapping[str, PlannedModel], needs: Mapping[str, ModelMemory], batch: MicroBatch, free: float, least: float
) -> str:
    """What to change, each with what it comes to."""
    lasting = sum(need.lasting for need in needs.values())
    ways = []
    if lasting < free:
        fitting = int(batch.tokens * (free - lasting) / max(need.passing for need in needs.values()))
        ways.append(f"lower {batch.option} or models.policy.seq_length: some {fitting} tokens fit")
    trained = [role for role, model in models.items() if isinstance(model.config, TrainableConfig)]
    if least < _at_once(needs):
        ways.append(f"set recompute_granularity of {' and '.join(trained)} to full: {_gib(least)} GiB")
    divide = "tensor_model_parallel_size, pipeline_model_parallel_size or use_distributed_optimizer"
    return "; ".join([*ways, f"divide the models over more processes by {divide}"])


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"
