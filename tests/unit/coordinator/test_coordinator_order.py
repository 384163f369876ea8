"""The order in which an episode's groups are trained: the prompts' where the run says so, else that of their arrival."""

import asyncio

import pytest
from harness import config, digits_count, place, questions
from reward_functions import length

from baton.clients import BufferClient
from baton.engine import Engine
from baton.errors import NotFoundError
from baton.testing import FakeRollout, FakeTrainer
from services.coordinator.state import Life

RANKED = {"models": {"policy": {"generator": "megatron", "batch_generation": {"ranking": True}}}}
RELAYED = {"runtime": {"num_episode": 1, "max_relay_episode": 1, "relay_sample_fn": "last"}}
STREAMED = {"runtime": {"num_episode": 1, "reproducible": False}}
REPRODUCIBLE = {"runtime": {"num_episode": 1}}
IN_PROMPT_ORDER, AS_THEY_COME = ["e0-p0", "e0-p1"], ["e0-p1", "e0-p0"]


class Last(FakeRollout):
    """Answers once `others` says that the other groups are where they are going."""

    def __init__(self, others):
        super().__init__()
        self.others = others

    async def Generate(self, request, context):
        await self.others()
        async for answer in super().Generate(request, context):
            yield answer


async def trained(buffer, folder, run_id, others, **options):
    """The group of each step of one episode, of which the first prompt is answered last."""
    trainer = FakeTrainer()
    async with place(buffer.address, folder, trainer=trainer, rollouts=(Last(others), FakeRollout()), **options) as there:
        there.coordinator.start_run(run_id)
        state = (await there.finish())[-1].state
    assert state.life is Life.SUCCEEDED, state.error
    return [samples.group_ids[0] for samples in trainer.trained]


def until_stored(buffer, run_id):
    """What returns when the buffer holds one group of the first episode."""

    async def one_group_is_stored():
        async with BufferClient(buffer.address) as client, asyncio.timeout(60):
            while True:
                try:
                    if (await client.get_episode(run_id, 0)).group_ids:
                        return
                except NotFoundError:
                    pass  # the episode is not open yet
                await asyncio.sleep(0.01)

    return one_group_is_stored


async def a_while():
    """Long enough for the other group to be scored; the order asked for does not depend on it."""
    await asyncio.sleep(0.5)


@pytest.mark.parametrize(
    "sections", [STREAMED | RANKED, RELAYED, RELAYED | RANKED, REPRODUCIBLE],
    ids=["ranked", "relayed", "both", "reproducible"],
)  # fmt: skip
async def test_ranked_relayed_and_reproducible_episodes_are_trained_in_the_order_of_their_prompts(
    buffer, run_id, tmp_path, sections
):
    engine = Engine(prompts=questions, rewards=[length])
    order = await trained(buffer, tmp_path, run_id, a_while, engine=engine, run=config(**sections))
    assert order == IN_PROMPT_ORDER


async def test_other_episodes_are_stored_and_trained_as_their_groups_come(buffer, run_id, tmp_path):
    engine, others = Engine(prompts=questions, rewards=[length]), until_stored(buffer, run_id)
    assert await trained(buffer, tmp_path, run_id, others, engine=engine, run=config(**STREAMED)) == AS_THEY_COME


@pytest.mark.parametrize("sections", [STREAMED | RANKED, RELAYED], ids=["ranked", "relayed"])
async def test_a_flow_of_the_users_own_keeps_its_order(buffer, run_id, tmp_path, sections):
    engine, others = Engine(prompts=questions, flow=digits_count), until_stored(buffer, run_id)
    assert await trained(buffer, tmp_path, run_id, others, engine=engine, run=config(**sections)) == AS_THEY_COME


@pytest.mark.parametrize(
    ("ranked", "reproducible", "requests"), [(RANKED, False, [2]), ({}, False, [1, 1]), ({}, True, [2])]
)
async def test_a_ranked_or_reproducible_episode_comes_to_a_replica_in_one_request(
    buffer, run_id, tmp_path, ranked, reproducible, requests
):
    """Otherwise it is as many requests as generation_batch_size makes of it."""
    runtime = {"num_episode": 1, "generation_batch_size": 1, "reproducible": reproducible}
    fake, run = FakeRollout(), config(runtime=runtime, **ranked)
    engine = Engine(prompts=questions, flow=digits_count)
    async with place(buffer.address, tmp_path, engine=engine, rollouts=(fake,), run=run) as there:
        there.coordinator.start_run(run_id)
        assert (await there.finish())[-1].state.life is Life.SUCCEEDED
    assert [len(request.prompts) for request in fake.requests] == requests
