"""What a flow can ask for: responses that go on token by token."""

from dataclasses import replace
from itertools import groupby

import numpy as np
from harness import config, place, questions

from baton.clients import LedgerClient
from baton.clients.rollout import SamplingParams
from baton.engine import Engine
from baton.partial import joined
from baton.samples import FinishReason, Samples
from baton.testing import FakeRollout, FakeTrainer
from services.coordinator.state import Life

ONE_EPISODE = {"num_episode": 1}


async def finished(buffer, folder, run_id, flow, fake, trainer=None, runtime=ONE_EPISODE):
    engine = Engine(prompts=questions, flow=flow)
    run = config(runtime=runtime)
    async with place(buffer.address, folder, engine=engine, trainer=trainer, rollouts=(fake,), run=run) as there:
        there.coordinator.start_run(run_id)
        return (await there.finish())[-1].state


async def clean(buffer, run_id):
    async with LedgerClient(buffer.address) as ledger:
        audit = await ledger.audit(run_id)
    return (list(audit.faults), list(audit.dead)) == ([], [])


async def test_a_flow_has_responses_that_were_cut_off_go_on_token_by_token(buffer, run_id, tmp_path):
    async def in_two_parts(context, prompts):
        async for group in context.generate(prompts, SamplingParams(max_new_tokens=3)):
            assert set(group.samples.finish_reasons) == {FinishReason.LENGTH}
            cut = [group.prompt.after(group.samples, row) for row in range(len(group.samples))]
            rest = [part.samples async for part in context.generate(cut, SamplingParams(n=1))]
            samples = joined(group.samples, Samples.concat(rest))
            yield replace(group, samples=samples).with_rewards([1.0] * len(samples))

    fake, trainer = FakeRollout(lambda prompt, index, version: f"more of {prompt}"), FakeTrainer()
    state = await finished(buffer, tmp_path, run_id, in_two_parts, fake, trainer)
    assert state.life is Life.SUCCEEDED, state.error
    trained = Samples.concat(trainer.trained)
    assert sorted(trained.sample_ids) == sorted(f"e0-p{number}/{row}" for number in range(2) for row in range(4))
    begun = {bytes(row.tolist()).decode() for row in trained.prompt_ids.rows()}
    assert begun == {"question 0", "question 1"}
    for prompt, response in zip(trained.prompt_ids.rows(), trained.response_ids.rows(), strict=True):
        text = bytes(prompt.tolist()).decode()
        assert bytes(response.tolist()).decode() == f"mormore of {text}mor"
    second = [prompt for request in fake.requests for prompt in request.prompts if prompt.HasField("token_ids")]
    assert len(second) == 8 and all(prompt.token_ids == prompt.continues for prompt in second)


async def test_the_next_turn_begins_with_exactly_the_tokens_of_the_one_before(buffer, run_id, tmp_path):
    turn = list(b" and then?")

    async def two_turns(context, prompts):
        async for group in context.generate(prompts, SamplingParams(n=1)):
            async for answer in context.generate([group.prompt.after(group.samples, 0, turn)]):
                yield replace(answer, prompt=group.prompt).with_rewards([1.0] * len(answer.samples))

    fake, trainer = FakeRollout(), FakeTrainer()
    state = await finished(buffer, tmp_path, run_id, two_turns, fake, trainer)
    assert state.life is Life.SUCCEEDED, state.error
    asked = [prompt for request in fake.requests for prompt in request.prompts if prompt.HasField("token_ids")]
    assert sorted(bytes(np.frombuffer(one.token_ids, "<i4").tolist()) for one in asked) == [
        b"question 0" + b"0" + bytes(turn), b"question 1" + b"0" + bytes(turn),
    ]  # fmt: skip
    assert all(one.token_ids[: len(one.continues)] == one.continues for one in asked)
    assert await clean(buffer, run_id)


async def test_the_second_turns_of_a_prompt_are_one_group_under_its_name_and_are_relayed_as_one(buffer, run_id, tmp_path):
    async def two_turns(context, prompts):
        async for group in context.generate(prompts):
            further = [group.prompt.after(group.samples, row) for row in range(len(group.samples))]
            turns = [turn.samples async for turn in context.generate(further, SamplingParams(n=1))]
            rewards = [1.0] * 4 if group.prompt.group_id == "e1-p2" else [0.0, 1.0, 1.0, None]
            yield replace(group, samples=Samples.concat(turns)).with_rewards(rewards)

    trainer = FakeTrainer()
    relay = {"num_episode": 2, "max_relay_episode": 2, "relay_sample_fn": "replace_flat"}
    state = await finished(buffer, tmp_path, run_id, two_turns, FakeRollout(), trainer, relay)
    assert state.life is Life.SUCCEEDED, state.error
    trained = Samples.concat(trainer.trained)
    groups = [name for name, same in groupby(trained.group_ids) if len(list(same)) == 4]
    assert sorted(groups[:2]) == ["e0-p0", "e0-p1"]
    assert "e1-p3" in groups[2:] and {*groups[2:]} & {*groups[:2]}, "the flat group is replaced by an earlier one, whole"
    assert [name.split("/")[0] for name in trained.sample_ids] == trained.group_ids
    assert trained.group_sizes.tolist() == [3] * 16
    np.testing.assert_allclose(trained.group_reward_mean, 2 / 3)
    assert await clean(buffer, run_id)
