"""Checkpoints: written at one split and read at another, never half, and gone on with as if nothing had happened."""

import asyncio
import os
import random
import shutil
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training import train, trainer, write_run_file

from baton.api.trainer.v1 import trainer_pb2 as pb
from baton.checkpoint_files import faults
from baton.clients import TrainerClient
from baton.errors import BatonError, NotFoundError
from models import make_model
from processes import ServiceProcess, TrainerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BEFORE, AFTER = (0, 1), (2, 3)
"""Episodes that are trained before the checkpoint is written, and after it is read."""
KILLS = int(os.environ.get("BATON_KILLS", "3"))
"""`make faults` has more of them."""


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


@dataclass
class Original:
    """The one-rank trainer that wrote the checkpoint and went on: what a reader must arrive at."""

    run_file: Path
    checkpoint: Path
    at_checkpoint: dict[str, torch.Tensor]
    steps_after: list[pb.TrainStepResponse]
    at_end: dict[str, torch.Tensor]


async def export(client: TrainerClient, directory: Path) -> dict[str, torch.Tensor]:
    await client.export_model(str(directory), timeout_s=60)
    return tensors(directory)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, buffer: ServiceProcess) -> Original:
    root = tmp_path_factory.mktemp("original")
    run_file = write_run_file(root, make_model(root / "model"))

    async def write(address: str) -> Original:
        async with TrainerClient(address) as client:
            for episode in BEFORE:
                await train(client, buffer.address, "original", episode)
            saved = await client.save_checkpoint(str(root / "checkpoints"), timeout_s=60)
            assert saved.bytes == sum(file.stat().st_size for file in Path(saved.path).rglob("*") if file.is_file())
            at_checkpoint = await export(client, root / "at-checkpoint")
            steps = [await train(client, buffer.address, "original", episode) for episode in AFTER]
            return Original(run_file, Path(saved.path), at_checkpoint, steps, await export(client, root / "at-end"))

    with trainer(run_file, root) as process:
        return asyncio.run(write(process.address))


@pytest.fixture(scope="module", params=[{"tensor": 2}, {"pipeline": 2}, {"data": 2}], ids=["tp2", "pp2", "dp2"])
def reader(
    request: pytest.FixtureRequest, original: Original, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TrainerProcess]:
    """A trainer of another layout, fresh from the model's first weights."""
    with trainer(original.run_file, tmp_path_factory.mktemp("reader"), **request.param) as process:
        yield process


@pytest.fixture
async def client(reader: TrainerProcess) -> AsyncIterator[TrainerClient]:
    async with TrainerClient(reader.address, timeout_s=60) as client:
        yield client


async def test_a_checkpoint_read_at_another_split_gives_the_weights_and_goes_on_alike(
    client: TrainerClient, original: Original, buffer: ServiceProcess, run_id: str, tmp_path: Path
) -> None:
    assert await client.load_checkpoint(str(original.checkpoint)) == len(BEFORE)
    loaded = await export(client, tmp_path / "loaded")
    assert set(loaded) == set(original.at_checkpoint)
    for name, tensor in original.at_checkpoint.items():
        assert torch.equal(loaded[name], tensor), name

    for episode, expected in zip(AFTER, original.steps_after, strict=True):
        step = await train(client, buffer.address, run_id, episode)
        assert step.global_step == expected.global_step
        for metric in ("loss", "grad_norm", "lr", "entropy"):
            assert step.metrics[metric] == pytest.approx(expected.metrics[metric], rel=1e-5, abs=1e-5), metric
    # Adam divides by the root of its second moment: a moment that was lost or halved would move every weight visibly
    for name, tensor in (await export(client, tmp_path / "end")).items():
        torch.testing.assert_close(tensor, original.at_end[name], rtol=0, atol=2e-5)


def test_training_moves_the_weights_by_more_than_the_comparison_forgives(original: Original) -> None:
    moved = [(tensor - original.at_checkpoint[name]).abs().max() for name, tensor in original.at_end.items()]
    assert min(moved) > 1e-3


@pytest.mark.parametrize("name", ["missing", "unmarked", "step-00000002.partial"])
async def test_what_is_no_whole_checkpoint_is_refused_by_name_and_changes_nothing(
    name: str, client: TrainerClient, original: Original, tmp_path: Path
) -> None:
    path = tmp_path / name
    if name != "missing":
        shutil.copytree(original.checkpoint, path)
    if name == "unmarked":
        (path / "baton.json").unlink()
    before = (await client.get_status()).global_step
    with pytest.raises(NotFoundError, match=f"{path} is not a whole checkpoint"):
        await client.load_checkpoint(str(path))
    assert (await client.get_status()).global_step == before


async def test_saving_the_same_step_again_replaces_it_and_leaves_nothing_else(client: TrainerClient, tmp_path: Path) -> None:
    paths = {(await client.save_checkpoint(str(tmp_path))).path for _ in range(2)}
    assert {str(path) for path in tmp_path.iterdir()} == paths
    await client.load_checkpoint(paths.pop())


def ranks_of(process: TrainerProcess) -> list[int]:
    """Process ids of torchrun's children."""
    return [int(pid) for pid in Path(f"/proc/{process.popen.pid}/task/{process.popen.pid}/children").read_text().split()]


def whole_checkpoints(directory: Path) -> list[Path]:
    return [path for path in directory.glob("*") if path.suffix != ".partial"]


async def save_until_killed(process: TrainerProcess, resume_from: Path, directory: Path, chance: random.Random) -> int:
    """Saves the step over and over until kill -9 of all ranks, or of one; returns how many saves were answered."""
    ranks, saves = ranks_of(process), 0
    victims = chance.choice([ranks, [chance.choice(ranks)]])
    async with TrainerClient(process.address) as client:
        await client.load_checkpoint(str(resume_from), timeout_s=60)
        threading.Timer(chance.uniform(0.0, 0.6), lambda: [os.kill(pid, signal.SIGKILL) for pid in victims]).start()
        while True:
            try:
                await client.save_checkpoint(str(directory), timeout_s=30)
                saves += 1
            except BatonError:
                return saves


@pytest.mark.timeout(900 + 60 * KILLS)
@pytest.mark.parametrize(
    ("layout", "kills"), [({}, KILLS - KILLS // 2), ({"tensor": 2}, KILLS // 2)], ids=["one rank", "two ranks"]
)
def test_a_trainer_killed_while_it_saves_leaves_a_whole_checkpoint_or_none(
    original: Original, tmp_path: Path, layout: dict[str, int], kills: int
) -> None:
    """The kills fall anywhere into a save, also into the replacing of an older one; each start resumes from what is left."""
    directory, newest = tmp_path / "checkpoints", original.checkpoint
    for number in range(kills):
        with trainer(original.run_file, tmp_path, **layout) as process:
            saves = asyncio.run(save_until_killed(process, newest, directory, random.Random(number)))
        process.ready_file.unlink()
        left = whole_checkpoints(directory)
        assert [path.name for path in left] in ([], ["step-00000002"])
        assert left or (not saves and newest is original.checkpoint), "a whole checkpoint stays until the next one is whole"
        assert [fault for path in left for fault in faults(path)] == []
        newest = left[0] if left else newest

    async def resume(address: str) -> dict[str, torch.Tensor]:
        async with TrainerClient(address) as client:
            await client.load_checkpoint(str(newest), timeout_s=60)
            return await export(client, tmp_path / "export")

    with trainer(original.run_file, tmp_path, **layout) as process:
        weights = asyncio.run(resume(process.address))
    for name, tensor in original.at_checkpoint.items():
        assert torch.equal(weights[name], tensor), name
