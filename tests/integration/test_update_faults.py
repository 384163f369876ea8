"""Weight updates of real services, a trainer and two static replicas, of which one dies, sleeps or is of another model.

After each: the version is out in time, the other replica serves it, the lost one serves nothing else, and what returns
catches up. How long it took is printed."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from publications import BOUND_S, DEADLINES, Crew, Stage, kill, on_stage, send_signal

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.clients import RolloutClient, TrainerClient
from baton.errors import BatonError, NotFoundError, WrongModelError
from baton.local.process_tree import descendants
from baton.weights import WeightPublisher
from models import make_model, make_tokenizer
from processes import ServiceProcess, StaticProcess, TrainerProcess
from services.coordinator.replicas import ReplicaHealth

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WORDS = 100_000
"""Such a vocabulary makes 26 MB of weights, more than a socket holds: a sender cannot be done while a receiver sleeps."""
OUT_S = 4.0
"""How long the trainer may take to come out of an update that is broken off, on a busy machine."""
FAULTS = {
    "killed before begin": ("before begin", signal.SIGKILL),
    "killed mid-bucket": ("mid-bucket", signal.SIGKILL),
    "killed before commit": ("before commit", signal.SIGKILL),
    "asleep before begin": ("before begin", signal.SIGSTOP),
    "asleep mid-bucket": ("mid-bucket", signal.SIGSTOP),
    "one of its ranks asleep mid-bucket, while its service answers": ("one rank", signal.SIGSTOP),
    "asleep before commit": ("before commit", signal.SIGSTOP),
}


def write_run_file(directory: Path, model: Path) -> Path:
    policy = {
        "model": str(model), "dtype": "float32", "seq_length": 64, "generator": "megatron", "max_new_tokens": 4,
        "max_num_seqs": 4,
    }  # fmt: skip
    runtime = {
        "sample_per_episode": 16, "train_micro_batch_size": 16, "train_global_batch_size": 16, "coalesced_buffer_mb": 1,
    }  # fmt: skip
    models = {"policy": policy, "ppo_policy": {"dtype": "float32", "lr": 1e-3}}
    run_file = directory / "run.yaml"
    run_file.write_text(yaml.safe_dump({"runtime": runtime, "models": models}))
    return run_file


def place(directory: Path) -> Path:
    directory.mkdir()
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def crew(directory: Path, buffer: ServiceProcess) -> Iterator[Crew]:
    run_file = write_run_file(directory, make_model(directory / "model", layers=1, vocabulary=WORDS))
    trainer = TrainerProcess(run_file, directory, 1)
    split = ("--set", "models.policy.tensor_model_parallel_size=2")
    replicas = [
        StaticProcess(run_file, place(directory / "a"), 1), StaticProcess(run_file, place(directory / "b"), 2, *split)
    ]  # fmt: skip
    processes = [trainer, *replicas]
    try:
        for process in processes:
            process.start(120)
        yield Crew(trainer, replicas, buffer, "update-faults")
    finally:
        for process in processes:
            kill(process)


def arrange(stage: Stage, moment: str, fault: signal.Signals) -> None:
    """Has the fault reach replica b at that moment of the next update."""
    victim, client = stage.crew.replicas[1], stage.clients[1]

    def strike() -> None:
        send_signal(victim, fault)

    def strike_soon() -> None:
        """It cannot take what is sent from now on, and a second later the sender waits for it in the midst of it."""
        send_signal(victim, signal.SIGSTOP)
        if fault != signal.SIGSTOP:
            asyncio.get_running_loop().call_later(1.0, kill, victim)

    if moment == "before begin":
        strike()
    elif moment == "mid-bucket":
        client.before["update_weights"] = strike_soon
    elif moment == "one rank":
        client.before["update_weights"] = lambda: os.kill(second_rank(victim), fault)
    else:
        client.before["commit_weights"] = strike


def second_rank(process: StaticProcess) -> int:
    """Its pid."""
    return next(pid for pid in descendants(process.popen.pid) if psutil.Process(pid).environ().get("RANK") == "1")


@pytest.mark.parametrize("told", FAULTS)
async def test_a_version_is_out_in_time_without_the_replica_that_is_lost_which_catches_up(crew: Crew, told: str) -> None:
    victim, (moment, fault) = crew.replicas[1], FAULTS[told]
    async with on_stage(crew) as stage:
        before = await stage.publish()
        await stage.serves(1, before)
        arrange(stage, moment, fault)
        after = await stage.publish()
        print(f"{told}: the version is out after {stage.took_s:.1f} s of {BOUND_S:g}")
        assert stage.took_s < BOUND_S
        assert after.committed == (stage.clients[0].address,)
        assert after.weights_digest != before.weights_digest
        await stage.serves(0, after)
        if fault == signal.SIGKILL:
            kill(victim)
            await asyncio.to_thread(victim.start, 120)
        else:
            await stage.serves_nothing(1)
            if moment == "one rank":
                assert stage.fleet.replicas[1].hangs
                assert "its engine is not out of that yet" in stage.fleet.replicas[1].reason
            send_signal(victim, signal.SIGCONT)
        print(f"back with the version after {await stage.is_caught_up(1, after):.1f} s")
        await stage.serves(0, after)


async def test_a_replica_that_was_started_again_between_two_versions_is_sent_the_group_anew(crew: Crew) -> None:
    """By a publisher that nobody tells of it."""
    ours = TrainerClient(crew.trainer.address), *(RolloutClient(replica.address) for replica in crew.replicas)
    async with ours[0] as trainer, ours[1] as first, ours[2] as second:
        publisher = WeightPublisher(trainer, [first, second])
        for _ in range(2):
            crew.version += 1
            await publisher.publish(crew.version)
        kill(crew.replicas[1])
        await asyncio.to_thread(crew.replicas[1].start, 120)
        crew.version += 1
        publication = await publisher.publish(crew.version)
        assert publication.committed == (first.address, second.address)
        for replica in first, second:
            assert (await replica.get_status()).weights_digest == publication.weights_digest


async def test_after_a_trainer_is_started_again_between_two_versions_its_weights_are_not_published(crew: Crew) -> None:
    """They are those of the checkpoint that it was started with."""
    async with TrainerClient(crew.trainer.address) as trainer, RolloutClient(crew.replicas[0].address) as replica:
        publisher = WeightPublisher(trainer, [replica])
        crew.version += 1
        before = await publisher.publish(crew.version)
        kill(crew.trainer)
        await asyncio.to_thread(crew.trainer.start, 120)
        crew.run_id = "update-faults-started-again"  # it counts its steps from 0
        with pytest.raises(NotFoundError, match=r"weight group \w+ is not open"):
            await publisher.publish(crew.version + 1)
        assert (await replica.get_status()).weights_digest in ("", before.weights_digest)


async def test_after_a_trainer_dies_mid_bucket_nothing_is_served_but_an_older_version_until_a_new_one_publishes(
    crew: Crew,
) -> None:
    async with on_stage(crew) as stage:
        before = await stage.publish()
        arrange(stage, "mid-bucket", signal.SIGSTOP)
        asyncio.get_running_loop().call_later(2.0, kill, crew.trainer)
        with pytest.raises(BatonError, match=f"publishing weights version {crew.version + 1} from trainer at"):
            await stage.publish()
        print(f"the trainer's death is told after {stage.took_s:.1f} s of {BOUND_S:g}")
        assert stage.took_s < BOUND_S
        send_signal(crew.replicas[1], signal.SIGCONT)
        assert f"the update to version {crew.version + 1} failed" in await stage.serves_nothing(0)
        if (await stage.clients[1].get_status()).state == pb.REPLICA_STATE_HEALTHY:  # it slept before it heard of the update
            await stage.serves(1, before)
        else:
            await stage.serves_nothing(1)
        await asyncio.to_thread(crew.trainer.start, 120)
        crew.run_id = "update-faults-again"  # its steps count from 1 again
        after = await stage.publish()
        for index in range(2):
            await stage.serves(index, after)


async def test_replicas_of_another_model_or_tokenizer_are_left_out_with_their_reasons_and_end_a_run_if_none_fits(
    crew: Crew, directory: Path
) -> None:
    deeper = make_model(directory / "deeper", layers=2, vocabulary=WORDS)
    words = [f"w{number}" for number in range(WORDS - 3)]
    renamed = make_model(directory / "renamed", layers=1, vocabulary=WORDS)
    make_tokenizer(renamed, [*reversed(words)])
    wrong = [
        StaticProcess(write_run_file(model, model), place(directory / f"of-{model.name}"), 1) for model in (deeper, renamed)
    ]
    try:
        for process in wrong:
            await asyncio.to_thread(process.start, 120)
        async with on_stage(crew, [crew.replicas[0], *wrong]) as stage:
            publication = await stage.publish()
            print(f"the version is out after {stage.took_s:.1f} s of {DEADLINES.publish_begin_s:g}")
            assert stage.took_s < DEADLINES.publish_begin_s
            assert publication.committed == (crew.replicas[0].address,)
            await stage.serves(0, publication)
            _, *left_out = stage.fleet.replicas
            assert {one.health for one in left_out} == {ReplicaHealth.STALE}
            assert "another model than the trainer" in left_out[0].reason
            assert "num_hidden_layers is 2 there and 1 here" in left_out[0].reason
            assert "tokenizer is" in left_out[1].reason
            await asyncio.sleep(2.5)  # the coordinator has looked again
            assert {one.health for one in left_out} == {ReplicaHealth.STALE}
            assert (await stage.publish()).committed == publication.committed
        async with on_stage(crew, wrong) as stage:
            started = time.monotonic()
            with pytest.raises(WrongModelError, match=r"num_hidden_layers is 2 there.*tokenizer is"):
                await stage.publish()
            assert time.monotonic() - started < BOUND_S
    finally:
        for process in wrong:
            kill(process)


async def test_a_replica_that_hangs_as_it_is_caught_up_keeps_the_trainer_no_longer_than_was_agreed(crew: Crew) -> None:
    victim = crew.replicas[1]
    async with on_stage(crew) as stage:
        before = await stage.publish()
        stage.clients[1].before["update_weights"] = lambda: send_signal(victim, signal.SIGSTOP)
        kill(victim)
        await asyncio.to_thread(victim.start, 120)
        await stage.until(lambda seen: seen.updating, 1)
        started = time.monotonic()
        async with stage.publishing.trainer:
            await stage.services.trainer.open_weight_group(1)  # whatever the trainer is to do next
        took_s = time.monotonic() - started
        print(f"the trainer was free after {took_s:.1f} s of {DEADLINES.catch_up_s:g} and what it takes to come out of it")
        assert took_s < DEADLINES.catch_up_s + OUT_S
        await stage.serves(0, before)
        send_signal(victim, signal.SIGCONT)
        print(f"back with the version after {await stage.is_caught_up(1, before):.1f} s")
