"""What a run tells the ledger of its prompts: issued, generated, lost and issued again, left out."""

import asyncio
import threading
from contextlib import asynccontextmanager

import redis
from harness import ENGINE, Held, config, place, until

from baton.clients import LedgerClient
from baton.engine import Engine
from services.coordinator.state import Life


@asynccontextmanager
async def under_way(run_id, buffer, folder, **options):
    """A run of one episode of two prompts."""
    async with place(buffer.address, folder, run=config(runtime={"num_episode": 1}), **options) as there:
        there.coordinator.start_run(run_id)
        yield there


async def until_issues(store, run_id, condition):
    """The records of the episode's groups that are not stored, once they are so."""
    async with asyncio.timeout(60):
        with redis.Redis.from_url(store.url, decode_responses=True) as raw:
            while not condition(found := raw.hgetall(f"baton:{{{run_id}}}:episode:0:issues")):
                await asyncio.sleep(0.01)
    return {group: record.split()[:2] for group, record in found.items()}


async def test_groups_are_issued_and_then_generated_before_they_are_put(store, buffer, run_id, tmp_path):
    may_score = asyncio.Event()

    async def slow_scores(context, prompts):
        async for group in context.generate(prompts):
            await may_score.wait()
            yield group.with_rewards([1.0] * len(group.texts))

    engine = Engine(prompts=ENGINE.prompts, flow=slow_scores)
    async with under_way(run_id, buffer, tmp_path, engine=engine) as there:
        await until_issues(store, run_id, lambda found: "generated" in str(found))
        may_score.set()
        assert (await there.finish())[-1].state.life is Life.SUCCEEDED


async def test_a_prompt_whose_rollout_was_lost_is_issued_again(store, buffer, run_id, tmp_path):
    rollouts = Held(), Held()
    async with under_way(run_id, buffer, tmp_path, rollouts=rollouts) as there:
        await until_issues(store, run_id, lambda found: len(found) == 2)
        await until(lambda: rollouts[0].requests)
        await there.rollouts[0].kill()
        found = await until_issues(store, run_id, lambda found: "issued 2" in str(found))
        assert ["issued", "2"] in found.values()
        rollouts[1].go.set()
        assert (await there.finish())[-1].state.life is Life.SUCCEEDED


async def test_the_proof_tells_a_prompt_that_the_flow_left_out(buffer, run_id, tmp_path):
    async def first_only(context, prompts):
        async for group in context.generate(prompts[:1]):
            yield group.with_rewards([1.0] * len(group.texts))

    run = config(runtime={"num_episode": 1, "stream_data_loader_type": "dynamic", "max_relay_episode": 1})
    engine = Engine(prompts=ENGINE.prompts, flow=first_only)
    told = []

    def look(buffers):
        told.append(buffers[-1].episode_id)
        hold.wait(60)
        return [sample for buffer in buffers for sample in buffer.buffer]

    hold = threading.Event()
    engine.set_relay_sample_fn(look)
    async with place(buffer.address, tmp_path, engine=engine, run=run) as there, LedgerClient(buffer.address) as ledger:
        there.coordinator.start_run(run_id)
        await until(lambda: told)
        audit = await ledger.audit(run_id)
        hold.set()
        assert (await there.finish())[-1].state.life is Life.SUCCEEDED
        after = await ledger.audit(run_id)
    assert (list(after.faults), list(after.dead)) == ([], ["1 prompt groups of episode 0 gave no samples"])
    assert (list(audit.faults), len(audit.dead)) == ([], 1)
    assert audit.dead[0].endswith(": the flow yielded no group for this prompt")
