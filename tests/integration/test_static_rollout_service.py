"""The rollout service on static batches, over gRPC: the verbs of vLLM's, and the trainer's weights by the same broadcast."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import yaml
from rollout_side import check_each_group_is_whole, collect
from training import logprobs_of, training_samples

from baton.api.common.v1 import weights_pb2
from baton.clients import BufferClient, RolloutClient, RolloutControlClient, TrainerClient
from baton.clients.rollout import Prompt, SamplingParams
from baton.errors import DeadlineError, InvalidRequestError, NotReadyError, StalePolicyError
from baton.samples import FinishReason, Samples
from baton.weights import WeightPublisher
from models import make_model
from processes import ServiceProcess, StaticProcess, TrainerProcess, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CONTEXT = 64


@dataclass
class Replica:
    """A running one, and versions that it has not served yet."""

    process: StaticProcess
    run_file: Path
    versions: Iterator[int]


LAYOUTS = {"tp1": (1, 1), "tp2": (2, 1), "pp2": (1, 2)}


@pytest.fixture(scope="module", params=LAYOUTS)
def replica(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    tensor, pipeline = LAYOUTS[request.param]
    directory = tmp_path_factory.mktemp("static")
    policy = {
        "model": str(make_model(directory / "model", tied=request.param != "tp2")), "dtype": "float32",
        "seq_length": CONTEXT, "generator": "megatron", "max_new_tokens": 8, "max_num_seqs": 6,
        "tensor_model_parallel_size": tensor, "pipeline_model_parallel_size": pipeline,
        "batch_generation": {"ranking": True, "min_prompt_length": 2}, "stop_token_list": "w7;w9 w11",
    }  # fmt: skip
    runtime = {"sample_per_episode": 16, "train_micro_batch_size": 4, "train_global_batch_size": 16}
    run = {"runtime": runtime, "models": {"policy": policy, "ppo_policy": {"dtype": "float32", "lr": 1e-3}}}
    run_file = directory / "run.yaml"
    run_file.write_text(yaml.safe_dump(run))
    process = StaticProcess(run_file, directory, tensor * pipeline)
    try:
        yield Replica(process.start(120), run_file, count(1))
    finally:
        process.stop()


@pytest.fixture
async def rollout(replica: Replica) -> AsyncIterator[RolloutClient]:
    async with RolloutClient(replica.process.address, timeout_s=60) as client:
        yield client


async def test_each_group_has_n_samples_with_ids_log_probabilities_and_version(rollout: RolloutClient) -> None:
    await check_each_group_is_whole(rollout, (await rollout.get_status()).policy_version)


async def test_the_same_seed_draws_the_same_tokens_whatever_else_is_asked_for(rollout: RolloutClient) -> None:
    async def draw(seed: int | None, *others: Prompt) -> list[int]:
        sampling = SamplingParams(n=4, seed=seed, ignore_eos=True)
        groups = await collect(rollout.generate([*others, Prompt("a", token_ids=[5, 6])], sampling=sampling))
        return groups["a"].samples.response_ids.values.tolist()

    first = await draw(1)
    assert await draw(1, Prompt("b", token_ids=[4] * 20), Prompt("c", token_ids=[8])) == first
    assert await draw(2) != first
    assert await draw(None) != await draw(None)


async def test_a_stop_text_ends_a_response_and_is_cut_from_its_text(rollout: RolloutClient) -> None:
    prompts = [Prompt(f"p{i}", token_ids=[20 + i]) for i in range(20)]
    sampling = SamplingParams(n=6, temperature=3.0, max_new_tokens=30)  # 3,600 tokens, of which one in 512 is that text
    groups = await collect(rollout.generate(prompts, sampling=sampling))
    stopped = 0
    for group in groups.values():
        for text, ids, finish in zip(
            group.texts, group.samples.response_ids.rows(), group.samples.finish_reasons, strict=True
        ):
            assert "w7" not in text
            stopped += finish == FinishReason.STOP and ids[-1] != 2
    assert stopped


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        (Prompt("long", token_ids=[5] * CONTEXT), SamplingParams(), r"prompt long has 64 tokens.*context of 64"),
        (Prompt("a", token_ids=[9]), SamplingParams(n=2, temperature=0.0), "group a: n must be 1"),
        (Prompt("a", token_ids=[9]), SamplingParams(top_p=1.5), "group a: top_p must be in"),
        (Prompt("empty", token_ids=[]), SamplingParams(), "prompt empty is empty"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(
    rollout: RolloutClient, prompt: Prompt, sampling: SamplingParams, message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        await collect(rollout.generate([prompt], sampling=sampling))


async def greedy_difference(rollout: RolloutClient, trainer: TrainerClient, version: int) -> float:
    """Mean absolute difference between the replica's log-probabilities and the trainer's over 16 greedy responses."""
    rng = np.random.default_rng(1)
    prompts = [Prompt(f"p{i}", token_ids=rng.integers(12, 500, 5 + i).tolist()) for i in range(16)]
    greedy = SamplingParams(temperature=0.0, max_new_tokens=12, ignore_eos=True)
    stream = rollout.generate(prompts, sampling=greedy, exact_version=version)
    samples = Samples.concat([group.samples async for group in stream])
    scored = await logprobs_of(trainer, samples)
    return float(np.abs(scored.values - samples.model_logprobs.values).mean())


async def test_the_trainers_weights_arrive_whole_fresh_and_trained(
    rollout: RolloutClient, replica: Replica, buffer: ServiceProcess, run_id: str, tmp_path: Path
) -> None:
    pipeline = ("--set", "models.ppo_policy.pipeline_model_parallel_size=2")
    process = TrainerProcess(replica.run_file, tmp_path, 2, *pipeline)
    await asyncio.to_thread(process.start, 120)
    try:
        async with TrainerClient(process.address) as trainer, BufferClient(buffer.address) as store:
            publisher = WeightPublisher(trainer, [rollout])
            version = next(replica.versions)
            fresh = await publisher.publish(version)
            assert await greedy_difference(rollout, trainer, version) < 1e-4
            await store.open_episode(run_id, 0, expected_samples=16, global_batch_size=16, micro_batch_size=4)
            await store.put(run_id, 0, training_samples())
            await store.close_episode(run_id, 0)
            await trainer.train_step(run_id, 0, pass_index=0, step_index=0, buffer_address=buffer.address)
            assert await greedy_difference(rollout, trainer, version) > 1e-3, "training changed nothing"
            version = next(replica.versions)
            trained = await publisher.publish(version)
            assert await greedy_difference(rollout, trainer, version) < 1e-4
            status = await rollout.get_status()
            assert (status.policy_version, status.weights_digest) == (version, trained.weights_digest)
            assert trained.weights_digest != fresh.weights_digest
            with pytest.raises(StalePolicyError):
                await collect(rollout.generate([Prompt("a", token_ids=[5])], exact_version=version - 1))
    finally:
        await asyncio.to_thread(process.stop)


async def test_an_update_without_its_sender_is_an_error_in_time_and_the_next_whole_one_is_served(
    rollout: RolloutClient, replica: Replica, tmp_path: Path
) -> None:
    version = next(replica.versions)
    nobody = weights_pb2.WeightGroup(
        group_id="nobody", backend="gloo", receivers=replica.process.ranks
    )
    members = range(1, replica.process.ranks + 1)
    nobody.senders.add(store_host="127.0.0.1", store_port=free_port(), members=members)
    with pytest.raises(DeadlineError, match=r"within 2 s|no sender answers"):
        await rollout.update_weights(version, nobody, first_rank=1, timeout_s=2)
    with pytest.raises(NotReadyError, match="the update to version"):
        await collect(rollout.generate([Prompt("a", token_ids=[5])]))
    process = TrainerProcess(replica.run_file, tmp_path, 1)
    await asyncio.to_thread(process.start, 120)
    try:
        async with TrainerClient(process.address) as trainer:
            version = next(replica.versions)
            await WeightPublisher(trainer, [rollout]).publish(version)
            assert await greedy_difference(rollout, trainer, version) < 1e-4
    finally:
        await asyncio.to_thread(process.stop)


async def test_what_a_batch_cannot_do_is_refused_and_changes_nothing(rollout: RolloutClient, replica: Replica) -> None:
    async with RolloutControlClient(replica.process.address) as control:
        for refused in (control.pause("keep"), control.pause("abort"), control.abort(["a"])):
            with pytest.raises(InvalidRequestError, match="static batches end what they have begun; say IN_FLIGHT_WAIT"):
                await refused
        with pytest.raises(InvalidRequestError, match="static batches do not sleep"):
            await control.sleep()
        group = weights_pb2.WeightGroup(group_id="none")
        with pytest.raises(InvalidRequestError, match="static batches end what they have begun"):
            await rollout.update_weights(next(replica.versions), group, first_rank=1, timeout_s=5, in_flight="keep")
        assert await collect(rollout.generate([Prompt("a", token_ids=[5])]))
        assert await control.pause("wait", timeout_s=20) == 0
        with pytest.raises(NotReadyError, match="it is paused"):
            await collect(rollout.generate([Prompt("a", token_ids=[5])]))
        await control.resume()
    assert await collect(rollout.generate([Prompt("a", token_ids=[5])]))


async def test_a_commit_without_an_update_is_refused(rollout: RolloutClient) -> None:
    with pytest.raises(NotReadyError, match="version 99 cannot be committed"):
        await rollout.commit_weights(99, "00")


async def test_a_cancelled_request_leaves_nothing_running(rollout: RolloutClient) -> None:
    prompts = [Prompt(f"p{i}", token_ids=[20 + i]) for i in range(64)]
    call = asyncio.create_task(collect(rollout.generate(prompts, sampling=SamplingParams(n=16, max_new_tokens=60))))
    await asyncio.sleep(0.3)
    call.cancel()
    async with asyncio.timeout(60):
        while (await rollout.get_status()).running_requests:
            await asyncio.sleep(0.05)
        assert await collect(rollout.generate([Prompt("a", token_ids=[5])]))
