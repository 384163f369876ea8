"""Megatron's distributed checkpoint of weights, optimizer and schedule; a killed save never leaves a loadable half."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.utils import add_prefix_for_sharding

from baton.errors import InvalidRequestError, NotFoundError
from services.trainer import whole_directory
from services.trainer.megatron.adam_steps import begin_where_nothing_is, give_each_parameter_its_count, with_count
from services.trainer.megatron.checkpoint_writer import write_without_forking
from services.trainer.megatron.engine import Engine
from services.trainer.megatron.lora.saved import check_facts

write_without_forking()
give_each_parameter_its_count()

_RESHARDABLE = {"distrib_optim_sharding_type": "fully_reshardable"}
"""Has a distributed optimizer write its state so that it can be read under any layout."""
MARKER = "baton.json"
"""Written last, before the directory gets its final name."""


def _state(engines: Mapping[str, Engine], *, loading: bool) -> dict:
    """What is sharded, by role; the names of the first role's tensors are plain, the others' begin with their role."""
    state = {}
    for role, engine in engines.items():
        begin_where_nothing_is(engine.optimizer)
        weights = engine.saved_weights()
        state[role] = {"model": weights}
        if engine.saves_optimizer:
            optimizer = engine.optimizer.sharded_state_dict(weights, is_loading=loading, metadata=_RESHARDABLE)
            state[role]["optimizer"] = with_count(optimizer)
        if len(state) > 1:
            add_prefix_for_sharding(state[role], f"{role}.")
    return state


def save(engines: Mapping[str, Engine], directory: Path, facts: Mapping[str, object]) -> Path:
    """Writes `step-<global_step>` into `directory`; `engines` are by role, `facts` must hold `global_step`. A collective,
    which rank 0 leaves last. Returns its path."""
    target = directory / f"step-{facts['global_step']:08d}"
    partial = whole_directory.begin(target, empty=dist.get_rank() == 0)
    dist.barrier()
    dist_checkpointing.save(_state(engines, loading=False), str(partial))
    dist.barrier()
    if dist.get_rank() == 0:
        schedules = {role: engine.schedule.state_dict() for role, engine in engines.items()}
        adapters = {role: engine.adapter_facts() for role, engine in engines.items()}
        (partial / MARKER).write_text(json.dumps({**facts, "schedules": schedules, "lora": adapters}, indent=1))
        whole_directory.finish(target)
    return target


def load(engines: Mapping[str, Engine], path: Path) -> dict[str, object]:
    """Restores what `save` wrote, under any parallel layout. A collective. Returns the facts.

    Raises NotFoundError if `path` is not a whole checkpoint, and InvalidRequestError if it is of other roles.
    """
    if path.suffix == whole_directory.SUFFIX or not (path / MARKER).is_file():
        raise NotFoundError(f"{path} is not a whole checkpoint; take a directory that SaveCheckpoint returned")
    facts = json.loads((path / MARKER).read_text())
    schedules = facts.pop("schedules")
    if schedules.keys() != engines.keys():
        raise InvalidRequestError(
            f"{path} is a checkpoint of {', '.join(schedules)}, and this run trains {', '.join(engines)}; take a checkpoint "
            "of a run with the same trained models"
        )
    adapters = facts.pop("lora", {})
    for role, engine in engines.items():
        check_facts(role, engine.adapter_facts(), adapters.get(role, {}), path)
    state = dist_checkpointing.load(_state(engines, loading=True), str(path))
    for role, engine in engines.items():
        engine.restore_weights(state[role]["model"])
        if engine.saves_optimizer:
            engine.optimizer.load_state_dict(state[role]["optimizer"])
        engine.schedule.load_state_dict(schedules[role])
    return facts


def size_of(path: Path) -> int:
    """Bytes of all files under a directory."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
