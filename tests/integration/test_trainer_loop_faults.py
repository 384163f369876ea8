"""A rank that fails in the middle of a call of a program's own loop leaves nothing of it in the next update."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training import ranks_of, trainer, training_samples, without, write_run_file

from baton.clients import LoopClient
from baton.errors import NotReadyError, ServiceFaultError
from baton.samples import Ragged, Samples
from models import make_model
from processes import TrainerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
LONG = 4000
ROOM = 32 * 2**20
"""Bytes that a rank may still take. A sample of LONG tokens needs ten times as much."""
OPTIONS = {"loss": {"name": "sft"}, "micro_batch_size": 1}
KEPT = {"learning_rate": 0.0}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainerProcess]:
    root = tmp_path_factory.mktemp("loop")
    model = make_model(root / "model", layers=2, positions=LONG + 96, intermediate_size=2048)
    with trainer(write_run_file(root, model), root, data=2) as process:
        yield process


def short() -> Samples:
    """Two samples for each rank."""
    return without(training_samples().take(range(4)), "rewards", "reward_status", "rollout_logprobs", "group_ids")


def long() -> Samples:
    """The same, but for the last one, the second of rank 1."""
    samples = short()
    rows = [*samples.response_ids.rows()[:3], np.arange(LONG) % 500]
    return replace(samples, response_ids=Ragged.of(rows, np.int32))


@contextmanager
def little_memory(pid: int) -> Iterator[None]:
    """The process gets no more than ROOM."""
    taken = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (taken + ROOM, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


async def norm(loop: LoopClient, name: str) -> float:
    """Of an update by two calls."""
    for index, part in enumerate((short(), long())):
        await loop.forward_backward(part, **OPTIONS, request_id=f"{name}-{index}")
    return (await loop.optim_step(**KEPT)).grad_norm


async def test_an_update_whose_second_call_ran_out_of_memory_is_begun_anew(process: TrainerProcess) -> None:
    async with LoopClient(process.address, timeout_s=60) as loop:
        await loop.forward_backward(short(), **OPTIONS, request_id="again-0")
        told = r"gradients of ppo_policy since its last update are gone.*begin that update anew.*rank 1: .*memory"
        with little_memory(ranks_of(process)[1]), pytest.raises(ServiceFaultError, match=told):
            await loop.forward_backward(long(), **OPTIONS, request_id="again-1")
        with pytest.raises(NotReadyError, match="no gradient is accumulated"):
            await loop.optim_step(**KEPT)
        again = await norm(loop, "again")
        assert again == pytest.approx(await norm(loop, "undisturbed"), rel=1e-5)
