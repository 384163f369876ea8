"""Saving behind the training, what is refused, and what stays when a save fails."""

import asyncio
import os
import random
import resource
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training import ranks_of, train, trainer, write_run_file

from baton.checkpoint_files import checkpoints_in, faults
from baton.clients import TrainerClient
from baton.errors import ConflictError, InvalidRequestError, NotFoundError
from models import make_model
from processes import ServiceProcess, TrainerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def training_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    return write_run_file(root, make_model(root / "model"))


@pytest.fixture(scope="module")
def process(training_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainerProcess]:
    """A trainer of two ranks that keep the same, and write half of it each."""
    with trainer(training_file, tmp_path_factory.mktemp("trainer"), data=2) as process:
        yield process


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainerProcess]:
    """Another run's trainer, of another model."""
    root = tmp_path_factory.mktemp("other")
    with trainer(write_run_file(root, make_model(root / "model", hidden_size=32)), root) as process:
        yield process


@pytest.fixture
async def client(process: TrainerProcess) -> AsyncIterator[TrainerClient]:
    async with TrainerClient(process.address, timeout_s=60) as client:
        yield client


@pytest.fixture
async def other_client(other: TrainerProcess) -> AsyncIterator[TrainerClient]:
    async with TrainerClient(other.address, timeout_s=60) as client:
        yield client


def stop(pid: int) -> None:
    """SIGSTOP; returns when no thread of it runs any more."""
    os.kill(pid, signal.SIGSTOP)
    stats = [task / "stat" for task in Path(f"/proc/{pid}/task").iterdir()]
    while any(stat.read_text().rpartition(")")[2].split()[0] != "T" for stat in stats):
        pass


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def test_a_step_taken_while_a_checkpoint_is_written_is_not_in_it(
    client: TrainerClient, buffer: ServiceProcess, run_id: str, tmp_path: Path
) -> None:
    await client.export_model(str(tmp_path / "before"))
    saved = await client.save_checkpoint(str(tmp_path / "checkpoints"), background=True)
    await train(client, buffer.address, run_id, 0)
    written = [await client.await_checkpoint(saved.path) for _ in range(2)]
    assert written == [sum(file.stat().st_size for file in Path(saved.path).iterdir())] * 2
    assert list(faults(Path(saved.path))) == []
    await client.export_model(str(tmp_path / "trained"))
    await client.load_checkpoint(saved.path)
    await client.export_model(str(tmp_path / "loaded"))
    before, trained, loaded = (tensors(tmp_path / name) for name in ("before", "trained", "loaded"))
    assert all(torch.equal(loaded[name], tensor) for name, tensor in before.items())
    assert not torch.equal(trained["model.norm.weight"], before["model.norm.weight"])


async def test_a_second_save_waits_for_the_first_and_both_become_whole(
    client: TrainerClient, buffer: ServiceProcess, run_id: str, tmp_path: Path
) -> None:
    first = await client.save_checkpoint(str(tmp_path), background=True)
    await train(client, buffer.address, run_id, 0)
    second = await client.save_checkpoint(str(tmp_path))
    assert [str(path) for path in checkpoints_in(tmp_path)] == [first.path, second.path]
    assert await client.await_checkpoint(first.path) > 0


async def test_only_the_newest_are_kept_and_an_older_one_goes_when_the_new_one_is_whole(
    client: TrainerClient, buffer: ServiceProcess, run_id: str, tmp_path: Path
) -> None:
    paths = []
    for episode in range(4):
        await train(client, buffer.address, run_id, episode)
        paths.append(Path((await client.save_checkpoint(str(tmp_path), keep=2)).path).name)
    assert names(tmp_path) == paths[-2:]
    await client.load_checkpoint(str(tmp_path / paths[2]))


async def test_to_wait_for_a_save_that_nobody_began_is_an_error(client: TrainerClient, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=f"no save of {tmp_path} was begun by this trainer"):
        await client.await_checkpoint(str(tmp_path))


async def test_another_runs_directory_is_refused_and_nothing_in_it_changes(
    client: TrainerClient, other_client: TrainerClient, tmp_path: Path
) -> None:
    path = Path((await client.save_checkpoint(str(tmp_path))).path)
    with pytest.raises(InvalidRequestError, match=f"{tmp_path} holds a checkpoint of another run, {path.name}; nothing was"):
        await other_client.save_checkpoint(str(tmp_path))
    assert names(tmp_path) == [path.name]
    assert list(faults(path)) == []


async def test_of_two_runs_that_save_to_one_place_at_the_same_time_one_is_refused(
    client: TrainerClient, other: TrainerProcess, other_client: TrainerClient, tmp_path: Path
) -> None:
    """The other run's trainer is stopped in the middle of a save, as a slow disk would."""
    rank, stopped = ranks_of(other)[0], False
    numbers = random.Random(0)
    for attempt in range(200):
        directory = tmp_path / str(attempt)
        saving = asyncio.create_task(other_client.save_checkpoint(str(directory), timeout_s=60))
        await asyncio.sleep(numbers.uniform(0.0, 0.03))
        stop(rank)
        try:
            if stopped := bool(list(directory.glob("*.partial"))):
                with pytest.raises(ConflictError, match=f"another trainer is saving into {directory} now; nothing was"):
                    await client.save_checkpoint(str(directory))
        finally:
            os.kill(rank, signal.SIGCONT)
        path = Path((await saving).path)
        assert names(directory) == [path.name]
        assert list(faults(path)) == []
        if stopped:
            return
    pytest.fail("no save was caught in the middle")


async def test_a_checkpoint_of_another_model_is_refused_with_all_that_differs(
    client: TrainerClient, other_client: TrainerClient, tmp_path: Path
) -> None:
    saved = await other_client.save_checkpoint(str(tmp_path))
    with pytest.raises(InvalidRequestError, match="is a checkpoint of another model: hidden_size is 32 there and 64 here"):
        await client.load_checkpoint(saved.path)


@pytest.mark.parametrize("name", ["__0_0.distcp", "__1_0.distcp", "index.json"])
async def test_a_checkpoint_without_one_of_its_files_is_refused_by_the_files_name_and_changes_nothing(
    name: str, client: TrainerClient, buffer: ServiceProcess, run_id: str, tmp_path: Path
) -> None:
    saved = Path((await client.save_checkpoint(str(tmp_path / "checkpoints"))).path)
    (saved / name).unlink()
    await client.export_model(str(tmp_path / "before"))
    with pytest.raises(NotFoundError, match=f"{saved} lacks its file {name}"):
        await client.load_checkpoint(str(saved))
    await client.export_model(str(tmp_path / "after"))
    before, after = tensors(tmp_path / "before"), tensors(tmp_path / "after")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


async def test_when_a_disk_takes_no_more_the_error_says_so_and_the_older_checkpoint_stays(
    client: TrainerClient, process: TrainerProcess, buffer: ServiceProcess, run_id: str, tmp_path: Path
) -> None:
    """Files of one rank may not grow beyond what is written of one in the middle: the same error path as a full disk's."""
    older = Path((await client.save_checkpoint(str(tmp_path), keep=1)).path)
    await train(client, buffer.address, run_id, 0)
    rank = ranks_of(process)[1]
    limit = (older / "__1_0.distcp").stat().st_size // 2
    resource.prlimit(rank, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        saved = await client.save_checkpoint(str(tmp_path), background=True, keep=1)
        with pytest.raises(InvalidRequestError, match=f"cannot write {saved.path}: rank 1: .*File too large.* as they were"):
            await client.await_checkpoint(saved.path)
        assert names(tmp_path) == [older.name]
        assert list(faults(older)) == []
    finally:
        resource.prlimit(rank, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    newer = Path((await client.save_checkpoint(str(tmp_path), keep=1)).path)
    assert names(tmp_path) == [newer.name]


async def test_a_role_starts_from_the_weights_of_the_checkpoint_that_its_load_option_names(
    client: TrainerClient, buffer: ServiceProcess, training_file: Path, run_id: str, tmp_path: Path
) -> None:
    """At another layout, and with a new optimizer."""
    await train(client, buffer.address, run_id, 0)
    await client.export_model(str(tmp_path / "hf"))
    saved = (await client.save_checkpoint(str(tmp_path / "checkpoints"))).path
    loading = tmp_path / "loading.yaml"
    loading.write_text(training_file.read_text().replace("ppo_policy:", f"ppo_policy:\n    load: {saved}", 1))
    (directory := tmp_path / "second").mkdir()
    with trainer(loading, directory, tensor=2) as second:
        async with TrainerClient(second.address, timeout_s=60) as reader:
            assert (await reader.get_status()).global_step == 0
            await reader.export_model(str(tmp_path / "loaded"))
    loaded = tensors(tmp_path / "loaded")
    for name, tensor in tensors(tmp_path / "hf").items():
        assert torch.equal(loaded[name], tensor), name
