"""Two tensor-parallel ranks whose exports fail on one of them, for `test_export_faults.py`."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from lora_states_side import engine_of, message_of

from services.trainer.megatron.parallel import Layout

WAIT_S = 20.0
"""For another rank. One that waits for a rank which has failed takes so long."""
CASES = {"file in the way": (0, 0), "weights": (0, 40_000), "adapter": (1, 400), "config": (0, 0)}
"""What cannot be written -> the rank that fails, and the size in bytes beyond which its files may not grow; 0: any."""
OLDER = "older"
"""A file in the exports that were there before."""


def work(rank: int, size: int, port: int, model: Path, directory: Path) -> dict[str, str]:
    """Exports into a directory for each case over an older export of it; returns what this rank was told."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    layout = Layout.start(tensor=size, pipeline=1, device="cpu", timeout_s=WAIT_S, seed=0)
    from services.trainer import exporting
    from services.trainer.megatron import hf

    hf.SHARD_BYTES = 100_000  # so that a file is written in the middle of what the ranks gather
    engine, told = engine_of(layout, model), {}
    for case, (failing, most) in CASES.items():
        target = directory / case / "export"
        exporting.export(engine, target)
        if rank == 0:
            for older in (target, target.with_name(f"{target.name}-adapter")):
                (older / OLDER).touch()
        with _hindered(case, target, engine.source, most if rank == failing else 0):
            told[case] = message_of(lambda target=target: exporting.export(engine, target))
    told["afterwards"] = message_of(lambda: exporting.export(engine, directory / "afterwards" / "export"))
    dist.destroy_process_group()
    return told


@contextmanager
def _hindered(case: str, target: Path, source: Path, most: int) -> Iterator[None]:
    """On every rank, with the others."""
    unlimited = resource.RLIM_INFINITY
    dist.barrier()
    if case == "file in the way":
        target.with_name(f"{target.name}.partial").touch()
    if case == "config" and dist.get_rank() == 0:
        (source / "config.json").rename(source / "config.away")
    resource.setrlimit(resource.RLIMIT_FSIZE, (most or unlimited, unlimited))
    dist.barrier()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
        if case == "config" and dist.get_rank() == 0:
            (source / "config.away").rename(source / "config.json")
