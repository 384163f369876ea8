"""A trained model as a Hugging Face directory, its adapters in PEFT's format: all ranks write them, whole or not at all."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from baton.errors import InvalidRequestError
from services.trainer import whole_directory
from services.trainer.megatron.engine import Engine
from services.trainer.megatron.hf import export_hf, finish_export
from services.trainer.megatron.lora.peft_files import finish_adapter, write_part
from services.trainer.megatron.model import PolicyModel
from services.trainer.megatron.parallel import Layout

log = logging.getLogger(__name__)
Result = TypeVar("Result")


def export(engine: Engine, directory: Path) -> int:
    """Writes the model, with the adapters added if it has any; and these into a directory beside it, if they are of the
    model that the run file names. Returns this rank's bytes. A collective.

    Raises InvalidRequestError, on every rank, if one of them cannot write; nothing of that directory is left then, and an
    older one of the name is as it was.
    """
    shape, dtype = engine.policy.shape, next(engine.policy.parameters()).dtype
    written = _write_whole(engine, directory, export_hf, lambda partial: finish_export(engine.source, partial, dtype, shape))
    if engine.adapted and not engine.rebased:
        about = engine.lora, shape, str(engine.source), engine.base
        beside = directory.with_name(f"{directory.name}-adapter")
        written += _write_whole(engine, beside, write_part, lambda partial: finish_adapter(partial, *about))
    return written


def _write_whole(
    engine: Engine, target: Path, write: Callable[[PolicyModel, Layout, Path], int], finish: Callable[[Path], None]
) -> int:  # fmt: skip
    """Every rank of the first data-parallel replica writes its part, and rank 0 finishes what they wrote."""
    layout = engine.layout
    is_first = layout.world_rank == 0

    def finished() -> None:
        if is_first:
            finish(partial)
            whole_directory.finish(target)

    partial = _on_all_ranks(lambda: whole_directory.begin(target, empty=is_first), target)
    written = _on_all_ranks(lambda: write(engine.policy, layout, partial) if layout.data_rank == 0 else 0, target)
    _on_all_ranks(finished, target)
    return written


def _on_all_ranks(work: Callable[[], Result], target: Path) -> Result:
    """What `work` returns, once it has on every rank. Raises InvalidRequestError on all of them if it has not on one, after
    what there is of the new directory is removed."""
    result, problem = None, ""
    try:
        result = work()
    except Exception as error:  # the other ranks wait for what becomes of this one
        log.exception("cannot write %s", target)
        cause = error.__cause__ or error  # `begin` and this function would say the same
        problem = f"{type(cause).__name__}: {cause}"
    outcomes: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(outcomes, problem)
    if problems := [f"rank {rank}: {outcome}" for rank, outcome in enumerate(outcomes) if outcome]:
        if dist.get_rank() == 0:
            shutil.rmtree(whole_directory.partial_of(target), ignore_errors=True)
        raise InvalidRequestError(
            f"cannot write {target}: {'; '.join(problems)}; nothing of it is left, and an older export there is as "
            "it was: make room, or choose another directory"
        )
    return result
