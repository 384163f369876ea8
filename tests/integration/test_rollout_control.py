"""Responses under way, in real vLLM: ended, waited for, or kept through a pause and through new weights; and continued."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from agents import agents
from rollout_side import collect, engine_stopped, until_begun, until_running
from training import logprobs_of, train, trainer, write_run_file

from baton.api.common.v1 import weights_pb2
from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.clients import RolloutClient, RolloutControlClient, RolloutRecordingClient, TrainerClient
from baton.clients.rollout import Generation, Prompt, SamplingParams
from baton.errors import DeadlineError, DigestMismatchError, InvalidRequestError, NotReadyError
from baton.partial import continuations, joined
from baton.samples import FinishReason, Samples
from baton.weights import WeightPublisher
from processes import ServiceProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CONTEXT = 16384
"""Of `long_replica`."""
WHOLE = 2000
"""Tokens of a response that takes seconds, and is waited for."""
LONG = 16000
"""Of one that must not end by itself, however busy the machine is."""
A, B = Prompt("a", token_ids=[5, 6, 7]), Prompt("b", token_ids=[5, 6, 8])


@pytest.fixture(scope="module")
def model(long_model: Path) -> Path:
    return long_model


@pytest.fixture(scope="module")
def process(long_replica: ServiceProcess) -> ServiceProcess:
    return long_replica


@pytest.fixture
async def rollout(process: ServiceProcess) -> AsyncIterator[RolloutClient]:
    async with RolloutClient(process.address) as client:
        yield client


@pytest.fixture
async def control(process: ServiceProcess) -> AsyncIterator[RolloutControlClient]:
    async with RolloutControlClient(process.address) as client:
        yield client


@pytest.fixture(scope="module")
def sender(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A trainer of the same model."""
    directory = tmp_path_factory.mktemp("trainer")
    with trainer(write_run_file(directory, model), directory) as process:
        yield process


@pytest.fixture
async def weights(sender: ServiceProcess) -> AsyncIterator[TrainerClient]:
    async with TrainerClient(sender.address, timeout_s=60) as client:
        yield client


async def under_way(rollout: RolloutClient, *prompts: Prompt, limit: int = LONG, **options: object) -> asyncio.Task:
    """Two long responses for each prompt, which have tokens already; the task ends with the groups by name."""
    sampling = SamplingParams(n=2, max_new_tokens=limit, **options)
    before = (await rollout.get_status()).running_requests
    call = asyncio.create_task(collect(rollout.generate(prompts, sampling=sampling)))
    await until_begun(rollout, before + 2 * len(prompts))
    return call


def lengths(generation: Generation) -> list[int]:
    return generation.samples.response_ids.lengths.tolist()


async def test_an_aborted_group_is_answered_with_what_it_has_and_the_others_go_on(
    rollout: RolloutClient, control: RolloutControlClient
) -> None:
    others = Prompt("b", token_ids=[7] * (CONTEXT - 600))
    call = await under_way(rollout, A, others)
    assert await control.abort(["a", "nobody"]) == 1
    groups = await call
    assert set(groups["a"].samples.finish_reasons) == {FinishReason.ABORT}
    assert all(0 < length < LONG for length in lengths(groups["a"]))
    np.testing.assert_array_equal(groups["a"].samples.model_logprobs.lengths, lengths(groups["a"]))
    assert lengths(groups["b"]) == [600, 600], "all that the context has room for"
    assert await control.abort() == 0


async def test_groups_that_the_engine_has_hardly_begun_are_aborted_too(
    rollout: RolloutClient, control: RolloutControlClient
) -> None:
    prompts = [Prompt(f"p{number}", token_ids=[5, number]) for number in range(64)]
    call = asyncio.create_task(collect(rollout.generate(prompts, sampling=SamplingParams(n=2, max_new_tokens=LONG))))
    while not (await rollout.get_status()).running_requests:
        await asyncio.sleep(0)
    assert await control.abort() == 64
    groups = await call
    assert {why for group in groups.values() for why in group.samples.finish_reasons} == {FinishReason.ABORT}


async def test_requests_of_agents_with_one_id_are_each_recorded_and_can_be_aborted(
    process: ServiceProcess, model: Path, rollout: RolloutClient, control: RolloutControlClient
) -> None:
    """As of an agent that passes on the id of what it was asked itself, or asks again before it has the first answer."""
    options = {"extra_body": {"ignore_eos": True}}
    async with RolloutRecordingClient(process.address) as recording, agents(recording, str(model)) as agent:
        speaker = await agent("same", **{"X-Request-Id": "twice"})
        call = asyncio.create_task(speaker.chat(max_tokens=LONG, **options))
        await until_begun(rollout, 1)
        await speaker.chat(max_tokens=5, **options)
        assert await control.abort(["same"]) == 1
        assert (await call).id == "chatcmpl-twice"
        taken = await recording.recorded(["same"])
        recorded = [generation.samples for generation in taken]
        await recording.forget(taken)
    assert [samples.finish_reasons.tolist() for samples in recorded] == [[FinishReason.LENGTH], [FinishReason.ABORT]]
    assert recorded[0].response_ids.lengths.tolist() == [5]


async def test_a_pause_that_waits_ends_with_whole_responses_and_refuses_new_ones_until_it_is_over(
    process: ServiceProcess, rollout: RolloutClient, control: RolloutControlClient
) -> None:
    with engine_stopped(process):
        call = asyncio.create_task(collect(rollout.generate([A], sampling=SamplingParams(n=2, max_new_tokens=600))))
        await until_running(rollout, 2)
        pausing = asyncio.create_task(control.pause("wait", timeout_s=60))
        while (await rollout.get_status()).state != pb.REPLICA_STATE_PAUSED:
            await asyncio.sleep(0.01)
        with pytest.raises(NotReadyError, match="it is paused; call Resume"):
            await collect(rollout.generate([B]))
        assert not pausing.done()
    assert await pausing == 0
    assert lengths((await call)["a"]) == [600, 600]
    group = weights_pb2.WeightGroup(senders=[weights_pb2.WeightSender()])
    with pytest.raises(NotReadyError, match="no weights can be taken: it is paused"):
        await rollout.update_weights(7, group, first_rank=1, timeout_s=30)
    await control.resume()
    assert await collect(rollout.generate([Prompt("b", token_ids=[5])]))


async def test_a_pause_that_waits_in_vain_says_what_still_runs(
    rollout: RolloutClient, control: RolloutControlClient
) -> None:
    call = await under_way(rollout, A)
    with pytest.raises(DeadlineError, match=r"2 responses still run after 0\.2 s, and the replica stays paused"):
        await control.pause("wait", timeout_s=0.2)
    assert await control.pause("abort", timeout_s=20) == 0
    assert set((await call)["a"].samples.finish_reasons) == {FinishReason.ABORT}
    await control.resume()


async def test_kept_responses_stand_still_and_end_as_if_nothing_had_been(
    rollout: RolloutClient, control: RolloutControlClient
) -> None:
    undisturbed = (await collect(_greedy(rollout, WHOLE)))["a"].samples
    call = asyncio.create_task(collect(_greedy(rollout, WHOLE)))
    await until_begun(rollout, 1)
    assert await control.pause("keep") == 1
    await asyncio.sleep(1.0)
    assert not call.done() and (await rollout.get_status()).running_requests == 1
    await control.resume()
    samples = (await call)["a"].samples
    np.testing.assert_array_equal(samples.response_ids.values, undisturbed.response_ids.values)
    assert samples.span_tokens.values.tolist() == [WHOLE]


def _greedy(rollout: RolloutClient, limit: int) -> AsyncIterator[Generation]:
    return rollout.generate([A], sampling=SamplingParams(temperature=0.0, max_new_tokens=limit))


async def test_memory_that_a_cpu_replica_does_not_have_cannot_be_given_back(
    rollout: RolloutClient, control: RolloutControlClient
) -> None:
    with pytest.raises(InvalidRequestError, match="this replica is on the CPU"):
        await control.sleep()
    assert await collect(rollout.generate([Prompt("b", token_ids=[5])]))


async def test_a_continuation_must_begin_with_exactly_the_tokens_of_what_it_continues(rollout: RolloutClient) -> None:
    first = (await collect(rollout.generate([Prompt("a", token_ids=[5, 6])])))["a"].samples
    tokens = [*first.prompt_ids.values.tolist(), *first.response_ids.values.tolist()]
    turn = Prompt("b", token_ids=[*tokens, 9, 10], continues=tokens)
    assert (await collect(rollout.generate([turn])))["b"].samples.prompt_ids.values.tolist() == [*tokens, 9, 10]
    other = [*tokens[:4], tokens[4] + 1, *tokens[5:]]
    with pytest.raises(InvalidRequestError, match=rf"prompt b has token {other[4]} at 4, where .* has {tokens[4]}"):
        await collect(rollout.generate([Prompt("b", token_ids=[*other, 9], continues=tokens)]))
    with pytest.raises(InvalidRequestError, match=rf"has 3 tokens, fewer than the {len(tokens)} that it continues"):
        await collect(rollout.generate([Prompt("b", token_ids=tokens[:3], continues=tokens)]))


async def test_aborted_responses_that_go_on_elsewhere_are_those_that_nobody_disturbed(
    rollout: RolloutClient, control: RolloutControlClient
) -> None:
    call = asyncio.create_task(collect(_greedy(rollout, LONG)))
    await until_begun(rollout, 1)
    await control.abort(["a"])
    cut = (await call)["a"].samples
    had, left = len(cut.response_ids.values), 500
    assert 0 < had < LONG
    undisturbed = (await collect(_greedy(rollout, had + left)))["a"].samples
    stream = rollout.generate(continuations(cut), sampling=SamplingParams(temperature=0.0, max_new_tokens=left))
    whole = joined(cut, Samples.concat([group.samples async for group in stream]))
    assert whole.sample_ids == undisturbed.sample_ids
    np.testing.assert_array_equal(whole.response_ids.values, undisturbed.response_ids.values)
    np.testing.assert_allclose(whole.model_logprobs.values, undisturbed.model_logprobs.values, atol=1e-4)
    assert whole.finish_reasons.tolist() == [FinishReason.LENGTH]
    assert whole.span_tokens.values.tolist() == [had, left]


async def test_responses_kept_through_an_update_tell_which_tokens_are_of_which_weights(
    rollout: RolloutClient, control: RolloutControlClient, weights: TrainerClient, buffer: ServiceProcess, run_id: str
) -> None:
    publisher = WeightPublisher(weights, [rollout])
    old = (await rollout.get_status()).policy_version + 1
    await publisher.publish(old)
    await train(weights, buffer.address, run_id, 0)
    call = await under_way(rollout, A, B, temperature=1.0)
    published = await publisher.publish(old + 1, in_flight="keep")
    await until_begun(rollout, 4)
    assert await control.abort() == 2
    samples = Samples.concat([group.samples for group in (await call).values()])
    assert samples.span_versions.values.tolist() == [old, old + 1] * 4
    assert set(zip(samples.policy_version_min, samples.policy_version_max, strict=True)) == {(old, old + 1)}
    assert samples.weights_digests == [published.weights_digest] * 4
    scored = await logprobs_of(weights, samples)
    rows = zip(scored.rows(), samples.model_logprobs.rows(), samples.span_tokens.rows(), strict=True)
    for by_trainer, by_replica, (first, second) in rows:
        row = np.abs(by_trainer - by_replica)
        assert first > 0 and second > 0 and len(row) == first + second
        assert row[first:].max() < 1e-3, "the second span is of the trained weights"
        assert row[:first].max() > 1e-2, "the first span is of those before"


async def test_kept_responses_go_on_with_no_weights_that_were_not_committed_and_end_if_one_version_was_asked_for(
    rollout: RolloutClient, weights: TrainerClient
) -> None:
    first = (await rollout.get_status()).policy_version + 1
    publisher = WeightPublisher(weights, [rollout])
    await publisher.publish(first)
    sampling = SamplingParams(max_new_tokens=LONG)
    exact = rollout.generate([Prompt("exact", token_ids=[5])], sampling=sampling, exact_version=first)
    ended = asyncio.create_task(collect(exact))
    await until_begun(rollout, 1)
    kept = await under_way(rollout, A)
    group = await weights.open_weight_group(1)
    await asyncio.gather(
        weights.publish_weights(group.group_id, first + 1, timeout_s=60),
        rollout.update_weights(first + 1, group, first_rank=1, timeout_s=60, in_flight="keep"),
    )
    assert (await ended)["exact"].samples.finish_reasons.tolist() == [FinishReason.ABORT]
    with pytest.raises(DigestMismatchError):
        await rollout.commit_weights(first + 1, "of others")
    await asyncio.sleep(1.0)
    assert not kept.done() and (await rollout.get_status()).running_requests == 2
    await WeightPublisher(weights, [rollout]).publish(first + 2)
    samples = (await kept)["a"].samples
    assert samples.finish_reasons.tolist() == [FinishReason.ABORT] * 2
    assert set(samples.span_versions.values) == {first}
