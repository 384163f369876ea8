"""One training, continued from checkpoints under every layout, for `test_checkpoint_layouts.py`."""

import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from splits_side import leased

from baton.config.policy_gradient import GrpoConfig
from baton.config.trainable import TrainableConfig
from baton.errors import ConfigError, InvalidRequestError
from services.trainer.megatron.parallel import Layout

LAYOUTS: dict[int, dict[str, tuple[int, int, bool]]] = {
    1: {"tp1": (1, 1, True), "tp1-plain": (1, 1, False)},
    2: {"dp2": (1, 1, True), "dp2-plain": (1, 1, False), "tp2": (2, 1, True), "pp2": (1, 2, True)},
    4: {"tp2-pp2": (2, 2, True)},
}
"""By number of ranks: name -> (TP, PP, whether the optimizer is distributed)."""
NAMES = [name for layouts in LAYOUTS.values() for name in layouts]
READS = [*((writer, 2) for writer in NAMES), ("tp1", 0), ("dp2", 0), ("tp1-plain", 0)]
"""(checkpoint's layout, its step): what is read under every layout. In this order one engine reads them, and trains after
each; what is left of a later step must not show."""
HANDED_ON = ("dp2", "tp2", "pp2")
WAIT_S = 150.0


@dataclass
class Read:
    """What one rank read from one checkpoint, in bytes; `extra` is what it took of memory besides."""

    reader: str
    writer: str
    rank: int
    read: int
    kept: int
    extra: int


@dataclass
class Found:
    """What the ranks of one number found."""

    losses: dict[tuple[str, str, int], list[float]] = field(default_factory=dict)
    """(layout, checkpoint's layout or "itself", step) -> losses of the next two steps."""
    reads: list[Read] = field(default_factory=list)
    refusals: dict[tuple[str, str], str] = field(default_factory=dict)
    """(layout, checkpoint's layout) -> why it is refused where a reader may not adapt; "" if it is not."""
    started: dict[str, Any] = field(default_factory=dict)
    """What a model starts from -> whether its weights are those, or the error."""


class _Reports(logging.Handler):
    """Keeps the numbers of the last line about what a rank read."""

    last: tuple[int, int] = (0, 0)

    def emit(self, record: logging.LogRecord) -> None:
        if "to keep" in record.msg:
            numbers = [int(str(value).replace(",", "")) for value in (record.args[1], record.args[4])]
            self.last = numbers[0], numbers[1]


def work(rank: int, size: int, port: int, model: Path, directory: Path) -> Found:
    """Under each layout of so many ranks: trains and writes checkpoints; then, when the ranks of all numbers have written,
    reads all and trains on."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    Layout.start(tensor=1, pipeline=1, device="cpu", timeout_s=60, seed=0)
    found = Found()
    for name in LAYOUTS[size]:
        written(name, size, model, directory, found)
    dist.barrier()
    (directory / f"written-{size}").touch()
    deadline = time.monotonic() + WAIT_S
    while not all((directory / f"written-{other}").exists() for other in LAYOUTS):
        assert time.monotonic() < deadline, "the ranks of another number have not written"
        time.sleep(0.1)
    for name in LAYOUTS[size]:
        continued(name, size, rank, model, directory, found)
    if size == 2:
        handed_on(model, directory)
        found.started = started_elsewhere(model, directory)
    dist.destroy_process_group()
    return found


def written(name: str, size: int, model: Path, directory: Path, found: Found) -> None:
    """Trains four steps and writes checkpoints that READS wants."""
    from services.trainer.megatron import checkpoint

    wanted = [at for writer, at in READS if writer == name]
    (layout, engine), losses = start(name, size, model), []
    for step in range(max(wanted, default=-2) + 2):
        if step in wanted:
            checkpoint.save({"ppo_policy": engine}, directory / name, {"global_step": step})
        losses.append(loss_of(engine, layout, step))
    found.losses |= {(name, "itself", at): losses[at : at + 2] for at in wanted}


def continued(name: str, size: int, rank: int, model: Path, directory: Path, found: Found) -> None:
    """Reads one checkpoint after the other into one engine."""
    from services.trainer.megatron import checkpoint

    reports = _Reports()
    logging.getLogger(checkpoint.__name__).addHandler(reports)
    logging.getLogger(checkpoint.__name__).setLevel(logging.INFO)
    layout, engine = start(name, size, model)
    for writer, at in READS:
        path, before = directory / writer / f"step-{at:08d}", reset_peak()
        assert checkpoint.load({"ppo_policy": engine}, path) == {"global_step": at}
        found.reads.append(Read(name, writer, rank, *reports.last, memory("VmHWM") - before))
        found.losses[name, writer, at] = [loss_of(engine, layout, step) for step in (at, at + 1)]
    for writer in NAMES:
        path = directory / writer / f"step-{2:08d}"
        try:
            checkpoint.load({"ppo_policy": engine}, path, adaptive=False)
            found.refusals[name, writer] = ""
        except InvalidRequestError as error:
            found.refusals[name, writer] = str(error)


def handed_on(model: Path, directory: Path) -> None:
    """In bfloat16, with a distributed optimizer: one layout trains and writes, each other one reads what the one before it
    wrote, and writes that."""
    from services.trainer.megatron import checkpoint

    before = None
    for name in HANDED_ON:
        layout, engine = start(name, 2, model, dtype="bfloat16")
        if before is None:
            for step in range(2):
                loss_of(engine, layout, step)
        else:
            checkpoint.load({"ppo_policy": engine}, before)
        before = checkpoint.save({"ppo_policy": engine}, directory / f"bfloat16-{name}", {"global_step": 2})


def started_elsewhere(model: Path, directory: Path) -> dict[str, Any]:
    """Models that start from what `load` names, at TP 2, from a checkpoint of DP 2, of other weights than the model's."""
    from services.trainer.megatron.checkpoint import load_checkpoint
    from services.trainer.megatron.hosted import HostedModel

    layout = Layout.arrange(tensor=2, pipeline=1, timeout_s=60, seed=0)
    config = TrainableConfig(dtype="float32")
    (directory / "empty").mkdir(exist_ok=True)
    engine = start("tp2", 2, model)[1]
    path = directory / "dp2" / f"step-{2:08d}"
    assert load_checkpoint(engine, None, None, load=path, adaptive_parallel_strategy=True) == 2
    found: dict[str, Any] = {"same": _distance(engine, HostedModel(config, layout, model))}
    for name, load in {"checkpoint": path, "hugging_face": directory / "other", "empty": directory / "empty"}.items():
        try:
            started = HostedModel(config, layout, model, role="reference", load=load)
            other = HostedModel(config, layout, load) if name == "hugging_face" else engine
            found[name] = _distance(started, other)
        except ConfigError as error:
            found[name] = str(error)
    return found


def _distance(one: Any, other: Any) -> float:
    pairs = zip(one.policy.parameters(), other.policy.parameters(), strict=True)
    distance = torch.tensor(max(float((a - b).detach().abs().max()) for a, b in pairs))
    dist.all_reduce(distance, dist.ReduceOp.MAX)
    return float(distance)


def reset_peak() -> int:
    """Begins to measure this process's peak memory anew; returns what it takes now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(field_name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field_name))


def start(name: str, size: int, model: Path, dtype: str = "float32") -> tuple[Layout, Any]:
    from services.trainer.megatron.engine import Engine

    tensor, pipeline, distributed = LAYOUTS[size][name]
    layout = Layout.arrange(tensor=tensor, pipeline=pipeline, timeout_s=60, seed=0)
    config = TrainableConfig(dtype=dtype, lr=1e-3, adam_eps=1e-5, use_distributed_optimizer=distributed)
    return layout, Engine(config, layout, model, total_steps=10)


def loss_of(engine: Any, layout: Layout, step: int) -> float:
    """Of one optimizer step, the same on every rank."""
    from services.trainer.objectives import objective_for
    from services.trainer.step import train_step

    report = train_step(objective_for(GrpoConfig()), {"ppo_policy": engine}, leased(step, layout, {}), tail="wrap")
    loss = torch.tensor([report.sums.get("loss", 0.0)], dtype=torch.float64)
    dist.all_reduce(loss)
    return float(loss)
