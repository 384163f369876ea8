"""What the trainer refuses, and that a refusal on any rank leaves all ranks ready for the next call.

TP 2 x DP 2: each call here is one that only some of the ranks have a reason to refuse, or could be left waiting by.
"""

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training import SIZE, logprobs_of, step, train, trainer, training_samples, without, write_run_file

from baton.api.trainer.v1 import scoring_pb2
from baton.clients import BufferClient, LedgerClient, ScoringClient, TrainerClient
from baton.errors import DeadlineError, DigestMismatchError, InvalidRequestError, NotFoundError
from baton.samples import Ragged, RewardStatus, Samples
from models import make_model
from processes import ServiceProcess, TrainerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LONGEST_WAIT_S = 50.0
"""A refusal takes milliseconds; a rank that waits for the others would take the run's longest deadline, half an hour."""
CONTEXT = 64


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainerProcess]:
    directory = tmp_path_factory.mktemp("trainer")
    run_file = write_run_file(directory, make_model(directory / "model", layers=2, positions=CONTEXT), tail="mask")
    with trainer(run_file, directory, tensor=2, data=2) as process:
        yield process


@pytest.fixture
async def client(process: TrainerProcess) -> AsyncIterator[TrainerClient]:
    """Checks after each test that all ranks still follow."""
    async with TrainerClient(process.address, timeout_s=LONGEST_WAIT_S) as client:
        yield client
        few = training_samples().take(range(2))
        assert len((await logprobs_of(client, few, timeout_s=LONGEST_WAIT_S)).lengths) == 2


@pytest.mark.parametrize("bad", [0, 9, 15], ids=["on data-parallel rank 0", "on rank 1", "at the end of rank 1"])
async def test_a_sample_of_weights_that_were_never_published_is_refused_with_both_digests(
    bad: int, client: TrainerClient, buffer: ServiceProcess, run_id: str
) -> None:
    samples = training_samples()
    samples.weights_digests[bad] = "other"
    before = (await client.get_status()).global_step
    with pytest.raises(DigestMismatchError) as caught:
        await step(client, buffer.address, run_id, samples, {1: "good"})
    assert f"sample s{bad} was sampled from weights other as version 1" in str(caught.value)
    assert "published good as that version" in str(caught.value)
    assert (await client.get_status()).global_step == before


async def test_a_sample_of_a_version_that_was_never_published_is_refused(
    client: TrainerClient, buffer: ServiceProcess, run_id: str
) -> None:
    with pytest.raises(DigestMismatchError, match="as version 1, but the trainer published nothing as that version"):
        await step(client, buffer.address, run_id, training_samples(), {2: "good"})
    async with LedgerClient(buffer.address) as ledger:
        (state,) = (await ledger.find_sample(run_id, "s0")).steps
    assert re.search(r"released \d+ sample s\d+ .* published nothing as that version", state), "given back, with the reason"


async def test_samples_of_published_weights_are_trained(client: TrainerClient, buffer: ServiceProcess, run_id: str) -> None:
    before = (await client.get_status()).global_step
    answer = await step(client, buffer.address, run_id, training_samples(), {0: "older", 1: "good"})
    assert answer.global_step == before + 1


@pytest.mark.parametrize(
    "column",
    [
        "rewards",
        "reward_status",
        "group_reward_mean",
        "group_reward_std",
        "rollout_logprobs",
        "weights_digests",
    ],
)
async def test_samples_without_a_column_that_the_step_needs_are_refused_by_its_name(
    column: str, client: TrainerClient, buffer: ServiceProcess, run_id: str
) -> None:
    with pytest.raises(InvalidRequestError, match=f"lack {column}"):
        await step(client, buffer.address, run_id, without(training_samples(), column), {1: "good"})


async def test_a_sample_that_is_longer_than_the_models_context_is_refused_by_name(
    client: TrainerClient, buffer: ServiceProcess, run_id: str
) -> None:
    samples = training_samples()
    responses = samples.response_ids.rows()
    responses[13] = np.ones(CONTEXT, np.int32)
    logprobs = Ragged.of([np.full(len(row), -6.0) for row in responses], np.float32)
    samples = replace(samples, response_ids=Ragged.of(responses, np.int32), rollout_logprobs=logprobs)
    with pytest.raises(InvalidRequestError, match=rf"sample s13 has \d+ tokens, more than the model's context of {CONTEXT}"):
        await step(client, buffer.address, run_id, samples)


async def test_a_sample_with_an_empty_prompt_is_refused_by_name(
    client: TrainerClient, buffer: ServiceProcess, run_id: str
) -> None:
    samples = training_samples()
    prompts = samples.prompt_ids.rows()
    prompts[11] = prompts[11][:0]
    with pytest.raises(InvalidRequestError, match="sample s11 has an empty prompt"):
        await step(client, buffer.address, run_id, replace(samples, prompt_ids=Ragged.of(prompts, np.int32)))


async def test_unscored_and_masked_tokens_do_not_enter_the_loss(
    client: TrainerClient, buffer: ServiceProcess, run_id: str
) -> None:
    """A reward that is not a number, and a log-probability that is none, must not spoil the others' gradient."""
    samples = training_samples()
    for unscored in (2, 11):
        samples.rewards[unscored], samples.reward_status[unscored] = np.nan, RewardStatus.ABSTAIN
        samples.rollout_logprobs.rows()[unscored][:] = -np.inf
    mask = Ragged(np.ones_like(samples.response_ids.values, np.uint8), samples.response_ids.lengths)
    mask.rows()[5][:2] = 0
    answer = await step(client, buffer.address, run_id, replace(samples, loss_mask=mask))
    lengths = samples.response_ids.lengths
    assert answer.response_tokens == lengths.sum() - lengths[2] - lengths[11] - 2
    assert all(math.isfinite(value) for value in answer.metrics.values()), dict(answer.metrics)
    assert answer.metrics["grad_norm"] > 0


async def test_a_step_whose_gradient_is_not_finite_is_skipped_and_counted_and_too_many_in_a_row_are_refused(
    client: TrainerClient, buffer: ServiceProcess, run_id: str
) -> None:
    samples, broken = training_samples(), training_samples()
    before, scores = (await client.get_status()).global_step, await logprobs_of(client, samples)
    broken.rewards[3] = np.finfo(np.float32).max
    broken.group_reward_mean[3] = np.finfo(np.float32).min
    for number in (1, 2):
        answer = await step(client, buffer.address, f"{run_id}-{number}", broken)
        assert (answer.global_step, answer.metrics["skipped"]) == (before + number, 1.0)
    with pytest.raises(InvalidRequestError, match=r"as in the 2 steps before, .*max_skipped_steps is 2; the weights"):
        await step(client, buffer.address, f"{run_id}-3", broken)
    assert (await logprobs_of(client, samples)).values.tobytes() == scores.values.tobytes()
    async with BufferClient(buffer.address) as other:  # a trainer in this one's place need not wait for the lease's end
        lease = other.lease(f"{run_id}-3", 0, pass_index=0, step_index=0, shuffle_seed=42, wait_s=1.0)
        assert sum([len(batch.samples) async for batch in lease]) == SIZE
    answer = await step(client, buffer.address, f"{run_id}-4", samples)
    assert (answer.global_step, answer.metrics["skipped"]) == (before + 3, 0.0)
    assert math.isfinite(answer.metrics["grad_norm"])
    answer = await step(client, buffer.address, f"{run_id}-5", broken)
    assert answer.metrics["skipped"] == 1.0, "a step in between begins the count again"


async def test_samples_that_only_fill_the_last_step_have_no_weight_with_the_tail_masked(
    client: TrainerClient, buffer: ServiceProcess, run_id: str
) -> None:
    samples = training_samples().take(range(10))
    answer = await step(client, buffer.address, run_id, samples)
    assert answer.samples == SIZE
    assert answer.response_tokens == samples.response_ids.lengths.sum()


async def test_an_episode_that_does_not_exist_is_not_found(
    client: TrainerClient, buffer: ServiceProcess, run_id: str
) -> None:
    with pytest.raises(NotFoundError, match=run_id):
        await client.train_step(
            run_id, 7, pass_index=0, step_index=0, buffer_address=buffer.address, timeout_s=LONGEST_WAIT_S
        )


async def test_a_repeated_step_returns_the_first_answer_and_takes_no_second_step(
    client: TrainerClient, buffer: ServiceProcess, run_id: str
) -> None:
    first = await train(client, buffer.address, run_id, 0)
    again = await client.train_step(run_id, 0, pass_index=0, step_index=0, buffer_address=buffer.address)
    assert again == first
    assert (await client.get_status()).global_step == first.global_step


@pytest.mark.parametrize("column", ["prompt_ids", "response_ids"])
async def test_log_probabilities_of_samples_without_tokens_are_refused_by_column(column: str, client: TrainerClient) -> None:
    samples = Samples(["a"], **{column: Ragged.of([[5, 6]], np.int32)})
    missing = {"prompt_ids": "response_ids", "response_ids": "prompt_ids"}[column]
    with pytest.raises(InvalidRequestError, match=f"lack {missing}"):
        await raw_scoring(client.address, samples)


async def raw_scoring(address: str, samples: Samples) -> None:
    """As a client that is not ours would ask."""
    async with ScoringClient(address) as scoring:
        request = scoring_pb2.ComputeLogprobsRequest(samples=samples.to_proto())
        await anext(scoring._stream("ComputeLogprobs", [request], LONGEST_WAIT_S))


@pytest.mark.parametrize(
    ("prompt", "response", "reason"),
    [
        ([5] * CONTEXT, [6], rf"sample a has {CONTEXT + 1} tokens, more than the model's context of {CONTEXT}"),
        ([], [6], "sample a has an empty prompt"),
    ],
)
async def test_log_probabilities_of_a_sample_that_the_model_cannot_take_are_refused(
    prompt: list[int], response: list[int], reason: str, client: TrainerClient
) -> None:
    samples = Samples(["a"], prompt_ids=Ragged.of([prompt], np.int32), response_ids=Ragged.of([response], np.int32))
    with pytest.raises(InvalidRequestError, match=reason):
        await logprobs_of(client, samples, timeout_s=LONGEST_WAIT_S)


async def test_log_probabilities_of_nothing_are_nothing(client: TrainerClient) -> None:
    assert len((await logprobs_of(client, training_samples().take([]))).lengths) == 0


async def test_a_weight_group_that_is_not_open_is_not_found(client: TrainerClient) -> None:
    with pytest.raises(NotFoundError, match="weight group nobody is not open"):
        await client.publish_weights("nobody", 1, timeout_s=LONGEST_WAIT_S)


async def test_a_receiver_that_never_comes_ends_the_publication_in_time_and_closes_the_group(client: TrainerClient) -> None:
    group = await client.open_weight_group(1)
    started = time.monotonic()
    with pytest.raises(DeadlineError, match=rf"weight group {group.group_id}: rank 0 of 2 did not meet the others"):
        await client.publish_weights(group.group_id, 1, timeout_s=2.0)
    assert time.monotonic() - started < LONGEST_WAIT_S
    with pytest.raises(NotFoundError, match=f"weight group {group.group_id} is not open"):
        await client.publish_weights(group.group_id, 1, timeout_s=2.0)


@pytest.mark.parametrize("call", ["save_checkpoint", "export_model"])
async def test_a_directory_that_cannot_be_made_is_refused_by_name(call: str, client: TrainerClient, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidRequestError, match=f"{tmp_path}/file/x"):
        await getattr(client, call)(str(tmp_path / "file" / "x"), timeout_s=LONGEST_WAIT_S)


async def test_two_steps_asked_for_at_once_are_both_taken_one_after_the_other(
    client: TrainerClient, buffer: ServiceProcess, run_id: str
) -> None:
    before = (await client.get_status()).global_step
    steps = await asyncio.gather(*(train(client, buffer.address, run_id, episode) for episode in (0, 1)))
    assert sorted(answer.global_step for answer in steps) == [before + 1, before + 2]


async def test_status_tells_layout_and_context(client: TrainerClient) -> None:
    status = await client.get_status()
    layout = (status.tensor_parallel_size, status.pipeline_parallel_size, status.data_parallel_size)
    assert (*layout, status.max_sequence_tokens) == (2, 1, 2, CONTEXT)
    assert status.parameters > 0


def test_a_world_of_another_size_than_the_layouts_is_refused_at_the_start(tmp_path: Path) -> None:
    process = TrainerProcess(write_run_file(tmp_path, tmp_path / "no-model-is-read"), tmp_path, 2)
    with pytest.raises(AssertionError, match="ended"):
        process.start(60)
    assert "torchrun started 2 processes, but models.ppo_policy asks for TP x PP x DP = 1" in process.output()
    assert "pass --nproc-per-node 1" in process.output()
