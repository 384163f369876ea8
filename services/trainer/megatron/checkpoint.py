"""Checkpoints of what is trained: saved behind the training, read under any layout, whole or not at all."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from baton.checkpoint_files import FORMAT, OWN_KEYS, facts_of
from baton.errors import InvalidRequestError
from services.trainer.megatron.adam_steps import begin_where_nothing_is, count_of, set_count
from services.trainer.megatron.checkpoint_pieces import Piece, pieces_of
from services.trainer.megatron.checkpoint_reader import CheckpointReader, ReadReport
from services.trainer.megatron.checkpoint_saver import CheckpointSaver
from services.trainer.megatron.hf import source_config
from services.trainer.megatron.lora.saved import check_facts

if TYPE_CHECKING:
    from services.trainer.megatron.engine import Engine
    from services.trainer.megatron.hosted import HostedModel

log = logging.getLogger(__name__)

SAVE_TIMEOUT_S = 1800.0
_LAYOUT = ("tensor", "pipeline", "data")


def state_of(models: Mapping[str, "HostedModel"]) -> list[Piece]:
    """What is sharded; the names of the first role's tensors are plain, the others' begin with their role."""
    return _pieces(models, {role: model.saved_weights() for role, model in models.items()})


def _pieces(models: Mapping[str, "HostedModel"], weights: Mapping[str, Mapping[str, Any]]) -> list[Piece]:
    pieces: list[Piece] = []
    for number, (role, model) in enumerate(models.items()):
        optimizer = model.optimizer if model.saves_optimizer else None
        if optimizer is not None:
            begin_where_nothing_is(optimizer)
        pieces += pieces_of(weights[role], optimizer, _prefix(role, number))
    return pieces


def _prefix(role: str, number: int) -> str:
    return f"{role}." if number else ""


def marker_of(models: Mapping[str, "HostedModel"], facts: Mapping[str, Any], lineage: str) -> dict[str, Any]:
    """What a checkpoint of these models says of itself."""
    if taken := facts.keys() & set(OWN_KEYS):
        raise ValueError(f"facts may not have the keys {', '.join(taken)}, which are the checkpoint's own")
    roles = {role: _described(model, _prefix(role, number)) for number, (role, model) in enumerate(models.items())}
    return {**facts, "format": FORMAT, "lineage": lineage, "layout": _layout(), "roles": roles}


def _described(model: "HostedModel", prefix: str) -> dict[str, Any]:
    """What a reader must know of one role's model, besides its tensors."""
    schedule = getattr(model, "schedule", None)  # one that is evaluated only has none
    return {
        "prefix": prefix, "head": model.head, "shape": asdict(model.shape), "config": source_config(model.source),
        "source": str(model.source), "dtype": str(model.policy.config.params_dtype).removeprefix("torch."),
        "updates": count_of(model.optimizer) if model.saves_optimizer else None, "lora": model.adapter_facts(),
        "schedule": schedule.state_dict() if schedule is not None else None,
    }  # fmt: skip


def _layout() -> dict[str, int]:
    sizes = (
        parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_data_parallel_world_size(),
    )  # fmt: skip
    return dict(zip(_LAYOUT, sizes, strict=True))


def start_save(
    saver: CheckpointSaver, engines: Mapping[str, "Engine"], directory: Path, facts: Mapping[str, Any],
    keep: int | None = None,
) -> Path:  # fmt: skip
    """Begins to write `step-<global_step>` into `directory`; `engines` are by role, `facts` must hold `global_step`. A
    collective. Returns its path after the copy; `saver.wait` says when it is whole. Raises what `CheckpointSaver.start`
    does."""
    target = directory / f"step-{facts['global_step']:08d}"
    started = time.perf_counter()
    first = next(iter(engines.values()))
    saver.start(target, state_of(engines), marker_of(engines, facts, first.lineage), keep)
    log.info("copied what %s is made of in %.2f s", target, time.perf_counter() - started)
    return target


def save(engines: Mapping[str, "Engine"], directory: Path, facts: Mapping[str, Any]) -> Path:
    """The same, whole when it returns. A collective."""
    saver = CheckpointSaver(SAVE_TIMEOUT_S)
    target = start_save(saver, engines, directory, facts)
    saver.wait(target)
    return target


def load(engines: Mapping[str, "Engine"], path: Path, *, adaptive: bool = True) -> dict[str, Any]:
    """Restores weights, optimizer and schedule of what `save` wrote, under any layout. Returns the facts.

    Raises, before anything is changed, NotFoundError if `path` is not a whole checkpoint, and InvalidRequestError if it is
    damaged, of other roles or another model, or, unless `adaptive`, of another layout.
    """
    reader = CheckpointReader(path)
    roles = reader.marker["roles"]
    if roles.keys() != engines.keys():
        raise InvalidRequestError(
            f"{path} is a checkpoint of {', '.join(roles)}, and this run trains {', '.join(engines)}; take a checkpoint "
            "of a run with the same trained models"
        )
    _check_layout(reader, _LAYOUT, adaptive)
    for role, engine in engines.items():
        _check_model(path, roles[role], engine)
        check_facts(role, engine.adapter_facts(), roles[role]["lora"], path)
        if engine.saves_optimizer:
            _require_optimizer(reader, roles[role], role)
    weights = {role: engine.saved_weights() for role, engine in engines.items()}
    _read(reader, _pieces(engines, weights))
    for role, engine in engines.items():
        engine.restored(weights[role])
        if engine.saves_optimizer:
            set_count(engine.optimizer, roles[role]["updates"])
        _restore(engine.schedule, roles[role]["schedule"])
        engine.lineage = reader.marker["lineage"]
    return facts_of(reader.marker)


def load_checkpoint(
    model: "HostedModel | Sequence[HostedModel]", optimizer: MegatronOptimizer | None,
    opt_param_scheduler: OptimizerParamScheduler | None, *, load: Path | str | None = None,
    adaptive_parallel_strategy: bool = True,
) -> int:  # fmt: skip
    """Initialises one model from a checkpoint, whatever layout wrote it. Returns the checkpoint's step. A collective.

    `optimizer`, `opt_param_scheduler`: the model's own, to be restored with it; None: they stay as they are, but for an
    optimizer's copy of the weights. `load`: the checkpoint's directory; None: the one that `models.<role>.load` names. It
    must hold a model of the same role, or else the first one with the same head is taken. `adaptive_parallel_strategy`:
    False refuses another layout than the model's.
    Raises NotFoundError and InvalidRequestError as `load` does, before anything is changed.
    """
    model = model[0] if isinstance(model, Sequence) else model
    if (path := load or model.load) is None:
        raise InvalidRequestError("load_checkpoint: no checkpoint is named; pass load=DIRECTORY, or set models.<role>.load")
    reader = CheckpointReader(Path(path))
    known = _model_like(model, reader)
    _check_layout(reader, _LAYOUT if optimizer is not None else _LAYOUT[:2], adaptive_parallel_strategy)
    own = model.adapter_facts() if model.adapted else {}
    if own or known["lora"].get("checkpoint") == "adapter":  # merged weights are like any others
        check_facts(model.role, own, known["lora"], reader.path)
    if optimizer is not None:
        _require_optimizer(reader, known, model.role)
        begin_where_nothing_is(optimizer)
    weights = model.saved_weights() if model.adapted else model.policy.sharded_state_dict()
    _read(reader, pieces_of(weights, optimizer, known["prefix"]))
    if model.adapted:
        model.restored(weights)
    if optimizer is not None:
        set_count(optimizer, known["updates"])
    elif (own := getattr(model, "optimizer", None)) is not None:
        own.reload_model_params()  # its float32 weights, which the next step writes over the model's
    if opt_param_scheduler is not None:
        _restore(opt_param_scheduler, known["schedule"])
    return int(reader.marker.get("global_step", 0))


def _model_like(model: "HostedModel", reader: CheckpointReader) -> dict[str, Any]:
    """What the checkpoint says of the model to start one from."""
    roles = reader.marker["roles"]
    names = [name for name in (model.role, *roles) if name in roles and roles[name]["head"] == model.head]
    if not names:
        found = ", ".join(f"{name}, which makes {known['head']}" for name, known in roles.items())
        raise InvalidRequestError(f"models.{model.role}.load: {reader.path} has {found}, and none that makes {model.head}")
    _check_model(reader.path, roles[names[0]], model)
    return roles[names[0]]


def _require_optimizer(reader: CheckpointReader, known: Mapping[str, Any], role: str) -> None:
    if known["updates"] is None:
        raise InvalidRequestError(f"{reader.path} holds no optimizer state of {role}; start from it by models.{role}.load")


def _check_layout(reader: CheckpointReader, axes: Sequence[str], adaptive: bool) -> None:
    there, here = reader.marker["layout"], _layout()
    if adaptive or all(there[axis] == here[axis] for axis in axes):
        return
    wrote, has = (" x ".join(f"{axis} {sizes[axis]}" for axis in axes) for sizes in (there, here))
    raise InvalidRequestError(
        f"{reader.path} was written under the parallel layout {wrote}, and this group has {has}: set "
        "adaptive_parallel_strategy_on_checkpoint to true, or give the group the checkpoint's sizes"
    )


def _check_model(path: Path, known: Mapping[str, Any], model: "HostedModel") -> None:
    """Raises InvalidRequestError, naming all that differs, for a checkpoint of another model."""
    here = asdict(model.shape) | {"head": model.head}
    there = known["shape"] | {"head": known["head"]}
    differs = [f"{name} is {there.get(name)} there and {value} here"
               for name, value in here.items() if there.get(name) != value]  # fmt: skip
    if differs:
        raise InvalidRequestError(f"{path} is a checkpoint of another model: {'; '.join(differs)}")


def _restore(schedule: OptimizerParamScheduler, state: Mapping[str, Any]) -> None:
    schedule.num_steps = 0  # Megatron adds the steps to those taken
    schedule.load_state_dict(dict(state))


def _read(reader: CheckpointReader, pieces: Sequence[Piece]) -> ReadReport:
    report = reader.read(pieces)
    log.info(
        "rank %d read %s bytes of %s in %.2f s, to keep %s (%.2f x)", dist.get_rank(), f"{report.read_bytes:,}",
        reader.path, report.seconds, f"{report.kept_bytes:,}", report.read_bytes / max(report.kept_bytes, 1),
    )  # fmt: skip
    return report


def size_of(path: Path) -> int:
    """Bytes of all files under a directory."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
