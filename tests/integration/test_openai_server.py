"""Agents that roll out by base URL, in real vLLM: what they sample is recorded token by token and goes into the buffer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import openai
import pytest
from agents import CHAT, Agent, agents
from exact_sampling import answers, check_described, reference
from rollout_side import until_begun, until_running, vllm_service
from transformers import AutoTokenizer
from vanishing_client import killed_while_it_waits

from baton.clients import BufferClient, RolloutClient, RolloutControlClient, RolloutRecordingClient
from baton.clients.rollout import Generation
from baton.samples import FinishReason, RewardStatus, Samples
from models import make_model
from processes import ServiceProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CONTEXT, LIMIT, LONG = 16384, 8, 16000
ROOM = 4000
"""Tokens that may wait to be taken."""
TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("served") / "model", layers=2, positions=CONTEXT)


@pytest.fixture(scope="module")
def process(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    options = {"seq_length": CONTEXT, "max_new_tokens": LIMIT, "top_k": 20, "temperature": 0.5,
               "openai_args": {"enable_auto_tool_choice": True, "tool_call_parser": "pythonic"}}  # fmt: skip
    service = vllm_service(tmp_path_factory.mktemp("rollout"), model, max_recorded_tokens=ROOM, **options)
    try:
        yield service.start(timeout_s=240)
    finally:
        service.kill()


@pytest.fixture
async def recording(process: ServiceProcess) -> AsyncIterator[RolloutRecordingClient]:
    async with RolloutRecordingClient(process.address) as client:
        yield client
        await client.forget(await client.recorded())


@pytest.fixture
async def rollout(process: ServiceProcess) -> AsyncIterator[RolloutClient]:
    async with RolloutClient(process.address) as client:
        yield client


@pytest.fixture
async def control(process: ServiceProcess) -> AsyncIterator[RolloutControlClient]:
    async with RolloutControlClient(process.address) as client:
        yield client


@pytest.fixture
async def agent(recording: RolloutRecordingClient, model: Path) -> AsyncIterator[Callable[..., Awaitable[Agent]]]:
    """Makes agents; `agent(group, **headers)`."""
    async with agents(recording, str(model)) as make:
        yield make


def one(recorded: list[Generation]) -> Samples:
    (generation,) = recorded
    return generation.samples


async def test_a_chat_is_recorded_token_by_token_as_it_was_sampled(agent, recording, model) -> None:
    answer = await (await agent("g/1")).chat(n=2, logprobs=True, top_logprobs=3)
    (generation,) = await recording.recorded(["g/1"], episode_id=4)
    samples, tokenizer = generation.samples, AutoTokenizer.from_pretrained(model)
    assert samples.sample_ids == ["g/1/0", "g/1/1"] and samples.group_ids == ["g/1"] * 2
    assert samples.episode_ids.tolist() == [4, 4]
    rendered = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert [row.tolist() for row in samples.prompt_ids.rows()] == [tokenizer.encode(rendered)] * 2
    for index, choice in enumerate(answer.choices):
        said = choice.logprobs.content
        tokens = samples.response_ids.rows()[index].tolist()
        assert tokenizer.convert_ids_to_tokens(tokens) == [token.token for token in said]
        np.testing.assert_array_equal(samples.rollout_logprobs.rows()[index], np.float32([one.logprob for one in said]))
        assert all(len(token.top_logprobs) == 3 for token in said)
        assert choice.message.content == generation.texts[index]
    assert samples.policy_version_min.tolist() == [0, 0]


async def test_what_the_agent_leaves_out_is_as_the_run_file_says(agent, recording, rollout, model) -> None:
    await (await agent("left-out")).chat()
    samples = one(await recording.recorded(["left-out"]))
    assert samples.temperatures.tolist() == [0.5] and samples.response_ids.lengths.tolist() == [LIMIT]
    check_described(samples, reference(model), TOLERANCE, temperature=0.5, top_k=20)
    await (await agent("greedy")).complete("w3 w4", temperature=0, max_tokens=5)
    greedy = one(await recording.recorded(["greedy"]))
    [expected] = [group.samples for group in await answers(rollout, [6, 7], n=1, temperature=0, max_new_tokens=5)]
    assert greedy.response_ids.values.tolist() == expected.response_ids.values.tolist()
    np.testing.assert_array_equal(greedy.model_logprobs.values, expected.model_logprobs.values)
    assert greedy.rollout_logprobs.values.tolist() == [0.0] * 5


async def test_recorded_samples_say_what_their_agent_cut_off(agent, recording, model) -> None:
    """So that the trainer can correct for it, as it does for the coordinator's own."""
    speaker, cuts = await agent("cut"), [{"temperature": 0.7, "top_p": 0.6}, {"top_p": 0.6}, {"temperature": 1.4}]
    for options in cuts:
        await speaker.complete("w3 w4", extra_body={"top_k": 0, "ignore_eos": True}, **{"temperature": 1.0} | options)
    for generation, options in zip(await recording.recorded(["cut"]), cuts, strict=True):
        check_described(generation.samples, reference(model), TOLERANCE, **options)


async def test_a_stream_is_recorded_as_if_it_were_none(agent, recording) -> None:
    speaker = await agent("stream")
    pieces = [piece async for piece in await speaker.chat(stream=True, seed=3, logprobs=True)]
    whole = await speaker.chat(seed=3)
    streamed, plain = await recording.recorded(["stream"])
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content == streamed.texts[0] == plain.texts[0]
    assert streamed.samples.sample_ids == ["stream/0"] and plain.samples.sample_ids == ["stream/1"]
    for column in ("response_ids", "rollout_logprobs", "model_logprobs", "span_tokens"):
        np.testing.assert_array_equal(getattr(streamed.samples, column).values, getattr(plain.samples, column).values)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_is_echoed_has_its_log_probabilities_and_is_recorded_once(agent, recording, stream) -> None:
    answer = await (await agent("echo")).complete("w3 w4 w5", echo=True, logprobs=1, stream=stream)
    pieces = [piece async for piece in answer] if stream else [answer]
    said = [choice.logprobs for piece in pieces for choice in piece.choices if choice.logprobs]
    logprobs = [logprob for part in said for logprob in part.token_logprobs]
    assert [token for part in said for token in part.tokens][:3] == ["w3", "w4", "w5"]
    assert logprobs[0] is None and all(logprob < 0 for logprob in logprobs[1:3])
    samples = one(await recording.recorded(["echo"]))
    np.testing.assert_array_equal(samples.rollout_logprobs.values, np.float32(logprobs[3:]))


async def test_without_a_group_every_answer_is_one_of_its_own(agent, recording) -> None:
    nobody = await agent()
    answers = await asyncio.gather(nobody.chat(), nobody.chat())
    for answer in answers:
        assert one(await recording.recorded([answer.id])).sample_ids == [f"{answer.id}/0"]
    several = await nobody.complete(["w3", "w4 w5"])
    samples = [one(await recording.recorded([f"{several.id}-{number}"])) for number in range(2)]
    assert [part.prompt_ids.values.tolist() for part in samples] == [[6], [7, 8]]


async def test_the_groups_go_into_the_buffer_and_are_forgotten(agent, recording, buffer, run_id) -> None:
    names = ["a", "b"]
    for name in names:
        await (await agent(name)).chat(n=2)
    taken = await recording.recorded(names)
    samples = Samples.concat([generation.samples for generation in taken])
    status = np.full(4, RewardStatus.VALUE, np.uint8)
    samples = replace(samples, rewards=np.arange(4, dtype=np.float32), reward_status=status)
    async with BufferClient(buffer.address) as client:
        await client.open_episode(run_id, 0, expected_samples=4, global_batch_size=4, micro_batch_size=4)
        assert await client.put(run_id, 0, samples) == 4
        await client.close_episode(run_id, 0)
        (batch,) = [batch async for batch in client.lease(run_id, 0, pass_index=0, step_index=0)]
    assert sorted(batch.samples.sample_ids) == ["a/0", "a/1", "b/0", "b/1"]
    await (await agent("a")).chat()  # which was not taken
    assert await recording.forget(taken) == 4
    assert await recording.forget(taken) == await recording.forget([]) == 0
    assert one(await recording.recorded()).sample_ids == ["a/2"]


async def test_a_replica_that_serves_nothing_says_so_and_takes_requests_afterwards(agent, recording, control, model) -> None:
    speaker = await agent("paused")
    await control.pause()
    try:
        with pytest.raises(
            openai.InternalServerError, match=r"503.*this replica serves nothing now: it is paused"
        ) as refused:
            await speaker.chat()
        assert refused.value.response.headers["retry-after"] == "1"
        assert (await speaker.client.models.list()).data[0].id == str(model)
    finally:
        await control.resume()
    await speaker.chat()


@pytest.mark.parametrize("header", ["Baton-Exact-Version", "Baton-Min-Version"])
async def test_an_agent_may_ask_for_a_version(agent, recording, header) -> None:
    await (await agent("versions", **{header: "0"})).chat()
    with pytest.raises(openai.ConflictError, match=r"version 3.* was asked for, but this replica serves"):
        await (await agent("versions", **{header: "3"})).chat()
    with pytest.raises(openai.BadRequestError, match="must be a policy version"):
        await (await agent("versions", **{header: "new"})).chat()


async def test_at_the_limit_of_what_waits_to_be_taken_requests_are_refused(agent, recording) -> None:
    speaker = await agent("many")
    await speaker.chat(n=8, max_tokens=ROOM // 8, extra_body={"ignore_eos": True})
    with pytest.raises(openai.RateLimitError, match=r"recorded tokens wait to be taken.*max_recorded_tokens is 4000"):
        await speaker.chat()
    assert await recording.forget(await recording.recorded(["many"])) == 8
    await speaker.chat()


async def test_an_aborted_group_ends_with_what_it_has_and_says_so(agent, recording, control, rollout) -> None:
    speaker = await agent("long")
    call = asyncio.create_task(speaker.chat(max_tokens=LONG, extra_body={"ignore_eos": True}))
    await until_begun(rollout, 1)
    assert await control.abort(["long"]) == 1
    answer = await call
    samples = one(await recording.recorded(["long"]))
    assert answer.choices[0].finish_reason == "abort" and samples.finish_reasons.tolist() == [FinishReason.ABORT]
    assert 0 < samples.response_ids.lengths[0] < LONG


async def test_an_aborted_stream_is_recorded_with_what_was_streamed(agent, recording, control, rollout) -> None:
    speaker = await agent("long-stream")
    stream = await speaker.chat(max_tokens=LONG, stream=True, logprobs=True, extra_body={"ignore_eos": True})
    await until_begun(rollout, 1)
    assert await control.abort(["long-stream"]) == 1
    choices = [piece.choices[0] async for piece in stream if piece.choices]
    samples = one(await recording.recorded(["long-stream"]))
    said = [token.logprob for choice in choices if choice.logprobs for token in choice.logprobs.content]
    assert choices[-1].finish_reason == "abort" and samples.finish_reasons.tolist() == [FinishReason.ABORT]
    np.testing.assert_array_equal(samples.rollout_logprobs.values, np.float32(said))
    assert samples.response_ids.lengths.tolist() == samples.model_logprobs.lengths.tolist() == [len(said)]
    assert samples.span_tokens.values.tolist() == [len(said)]


async def test_the_work_of_an_agent_that_leaves_ends_and_is_not_recorded(agent, recording, rollout) -> None:
    speaker = await agent("left")
    stream = await speaker.chat(max_tokens=LONG, stream=True, extra_body={"ignore_eos": True})
    await until_running(rollout, 1)
    await stream.close()
    await until_running(rollout, 0)
    assert await recording.recorded(["left"]) == []


async def test_the_work_of_an_agent_that_is_killed_ends_and_is_not_recorded(recording, rollout, model) -> None:
    await killed_while_it_waits(rollout, await recording.base_url("killed"), str(model))
    assert await recording.recorded(["killed"]) == []


async def test_a_stop_text_that_is_a_special_token_ends_a_response(agent, recording) -> None:
    speaker, options = await agent("stopped"), {"max_tokens": 400, "temperature": 2, "stop": ["</s>", "w500"]}
    answer = await speaker.complete("w3", n=8, extra_body={"ignore_eos": True, "top_k": 0}, **options)
    rows = [row.tolist() for row in one(await recording.recorded(["stopped"])).response_ids.rows()]
    assert {choice.finish_reason for choice in answer.choices if 2 in rows[choice.index]} == {"stop"}
    assert all(2 not in row[:-1] for row in rows)


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
REFUSED = {
    "beam search": ({"extra_body": {"use_beam_search": True}, "temperature": 0}, "a beam search cannot be recorded"),
    "a negative limit": ({"max_tokens": -1}, "max_tokens"),
    "all log-probabilities": ({"logprobs": True, "top_logprobs": -1}, "ask for a number of them"),
    "a response format": ({"response_format": {"type": "json_object"}}, r"structured outputs .* cannot be recorded"),
    "a regular expression": (
        {"extra_body": {"structured_outputs": {"regex": "w[0-9]"}}}, r"structured outputs .* cannot be recorded",
    ),
    "an end at repetitions": (
        {"extra_body": {"repetition_detection": {"max_pattern_size": 1, "min_count": 2}}},
        "repetition_detection cannot be recorded",
    ),
    "a stop text that cannot come": ({"stop": ["nothing"]}, "stop text 'nothing': the tokenizer has no tokens for it"),
    "a tool that must be called": (
        {"tools": [TOOL], "tool_choice": "required"}, r"structured outputs .* cannot be recorded",
    ),
    "one tool that must be called": (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "add"}}},
        r"structured outputs .* cannot be recorded",
    ),
    "too long a prompt": ({"messages": [{"role": "user", "content": "w3 " * (CONTEXT + 1)}]}, "maximum context length"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_cannot_be_done_is_refused_with_the_reason_and_not_recorded(agent, recording, case) -> None:
    options, reason = REFUSED[case]
    with pytest.raises(openai.BadRequestError, match=reason):
        await (await agent("refused")).chat(**options)
    assert await recording.recorded(["refused"]) == []


async def test_another_path_is_answered_with_those_that_there_are(agent, recording, model) -> None:
    with pytest.raises(openai.NotFoundError, match="there is nothing at /v1/embeddings; the base URL is /v1 or"):
        await (await agent()).client.embeddings.create(model=str(model), input="w3")
