"""Spreading prompts over replicas, and what a replica may not do."""

import asyncio

import grpc
import pytest
from harness import AnswersOnce, Held, until

from baton.clients import RolloutClient, RolloutControlClient
from baton.clients.rollout import SamplingParams
from baton.engine import PromptItem
from baton.errors import DeadlineError, DigestMismatchError, InvalidRequestError, ServiceFaultError, ServiceUnavailableError
from baton.samples import FinishReason
from baton.testing import FakeRollout, serve
from services.coordinator.digests import check_digests
from services.coordinator.fleet import Fleet
from services.coordinator.replicas import ReplicaHealth
from services.coordinator.rollouts import Rollouts


def prompts(count, first=0):
    names = range(first, first + count)
    return [PromptItem(f"g{i}", [{"role": "user", "content": f"q{i}"}], f"q{i}", {"i": i}) for i in names]


def generate(rollouts, items, published=None, **sampling):
    return rollouts.generate(items, SamplingParams(**sampling), episode_id=7, published=published or {0: ""})


def over(*replicas, batch_size=1, group_size=2, version=0, return_s=5.0, ranking=False, status_s=60.0, timeout_s=10.0):
    fleet = Fleet([RolloutClient(one.address, timeout_s=status_s) for one in replicas], return_s=return_s)
    fleet.version = version
    return Rollouts(
        fleet, batch_size=batch_size, group_size=group_size, timeout_s=timeout_s, max_attempts=3, ranking=ranking
    )  # fmt: skip


async def test_every_prompt_becomes_one_group_with_its_metadata_and_texts():
    fake = FakeRollout(lambda prompt, index, version: f"{prompt}-{index}")
    async with serve(fake) as replica:
        groups = [group async for group in generate(over(replica, batch_size=2), prompts(3))]
    assert sorted(group.prompt.group_id for group in groups) == ["g0", "g1", "g2"]
    first = next(group for group in groups if group.prompt.group_id == "g0")
    assert (first.samples.sample_ids, first.texts) == (["g0/0", "g0/1"], ["q0-0", "q0-1"])
    assert first.samples.metadata == ['{"i": 0}'] * 2
    assert first.samples.episode_ids.tolist() == [7, 7]
    assert sorted(len(request.prompts) for request in fake.requests) == [1, 2]


async def test_requests_go_to_the_replica_with_the_fewest_prompts_outstanding():
    slow, fast = Held(), FakeRollout()
    slow.go.set()
    async with serve(slow) as first, serve(fast) as second:
        rollouts = over(first, second)
        both = [group async for group in generate(rollouts, prompts(2))]
        assert (len(both), len(slow.requests), len(fast.requests)) == (2, 1, 1)
        slow.go.clear()
        still_busy = asyncio.create_task(anext(generate(rollouts, prompts(1, first=2))))  # goes to the slow one
        await until(lambda: len(slow.requests) == 2)
        async for _ in generate(rollouts, prompts(1, first=3)):
            pass
        assert (len(slow.requests), len(fast.requests)) == (2, 2)
        slow.go.set()
        await still_busy
    assert set(rollouts.outstanding.values()) == {0}


async def test_few_prompts_are_divided_so_that_no_replica_is_idle():
    fakes = FakeRollout(), FakeRollout()
    async with serve(fakes[0]) as first, serve(fakes[1]) as second:
        async for _ in generate(over(first, second, batch_size=64), prompts(6)):
            pass
    assert [[len(request.prompts) for request in fake.requests] for fake in fakes] == [[3], [3]]


def of_lengths(*lengths):
    return [PromptItem(f"g{i}", [{"role": "user", "content": "x" * n}], "x" * n) for i, n in enumerate(lengths)]


async def test_a_ranked_window_is_dealt_to_the_replicas_by_batches_of_neighbours_equals_in_their_order():
    fakes = FakeRollout(), FakeRollout()
    async with serve(fakes[0]) as first, serve(fakes[1]) as second:
        rollouts = over(first, second, batch_size=2, ranking=True)
        answered = [group.prompt.group_id async for group in generate(rollouts, of_lengths(1, 3, 9, 3, 7, 3, 8, 2))]
    assert sorted(answered) == [f"g{i}" for i in range(8)]
    asked = [sorted([prompt.group_id for prompt in request.prompts] for request in fake.requests) for fake in fakes]
    assert asked == [[["g2", "g6"], ["g3", "g5"]], [["g4", "g1"], ["g7", "g0"]]]


async def test_a_replica_that_dies_while_it_is_asked_for_lengths_leaves_that_to_another():
    class Dying(FakeRollout):
        async def MeasurePrompts(self, request, context):
            killing.append(asyncio.create_task(dying.kill()))
            await asyncio.sleep(60)

    killing = []
    async with serve(Dying()) as dying, serve(FakeRollout()) as living:
        rollouts = over(dying, living, ranking=True)
        answered = [group.prompt.group_id async for group in generate(rollouts, of_lengths(1, 2, 3))]
        await killing[0]
    assert sorted(answered) == ["g0", "g1", "g2"]


async def test_lengths_may_take_as_long_to_measure_as_a_generation():
    class Slow(FakeRollout):
        async def MeasurePrompts(self, request, context):
            await asyncio.sleep(1.5)
            return await super().MeasurePrompts(request, context)

    async with serve(Slow()) as replica:
        rollouts = over(replica, ranking=True, status_s=0.5)
        answered = [group.prompt.group_id async for group in generate(rollouts, of_lengths(1, 2, 3))]
    assert sorted(answered) == ["g0", "g1", "g2"]


async def test_the_group_size_is_asked_for_unless_the_flow_says_otherwise():
    fake = FakeRollout()
    async with serve(fake) as replica:
        rollouts = over(replica, group_size=4)
        sizes = [len(group.samples) async for group in generate(rollouts, prompts(1))]
        sizes += [len(group.samples) async for group in generate(rollouts, prompts(1), n=3, temperature=0.5)]
    assert sizes == [4, 3]
    assert fake.requests[1].sampling.temperature == 0.5


async def test_errors_of_a_replica_name_its_address():
    fake = FakeRollout()
    fake.max_model_len = 1
    async with serve(fake) as replica:
        with pytest.raises(InvalidRequestError, match=rf"{replica.address}: prompt g0 has 2 tokens.*context is 1"):
            [group async for group in generate(over(replica), prompts(1))]
        lagging = over(replica, version=3, return_s=0.3)
        with pytest.raises(ServiceUnavailableError, match=rf"rollout at {replica.address} is stale: has version 0, not 3"):
            [group async for group in generate(lagging, prompts(1))]


async def test_groups_that_a_dead_replica_has_not_answered_go_to_another_and_none_is_taken_twice(caplog):
    dying, living = AnswersOnce(), FakeRollout()
    async with serve(dying) as first, serve(living) as second:
        rollouts = over(first, second, batch_size=4)
        seen = []
        async for group in generate(rollouts, prompts(8)):
            seen.append(group.prompt.group_id)
            if group.prompt.group_id == "g0":
                await first.kill()
    assert sorted(seen) == [f"g{i}" for i in range(8)]
    again = [prompt.group_id for prompt in living.requests[-1].prompts]
    assert again == ["g1", "g2", "g3"]  # g0 was answered before it died
    assert rollouts.outstanding == {first.address: 0, second.address: 0}
    told = [record.message for record in caplog.records]
    assert told[0].startswith(f"rollout at {first.address} died: ")
    assert told[1] == f"rollout at {first.address}: its 3 unanswered groups go elsewhere"


async def test_a_replica_of_another_version_gets_nothing_and_its_groups_go_elsewhere():
    lagging, present = FakeRollout(), FakeRollout()
    present.policy_version = 2
    async with serve(lagging) as first, serve(present) as second:
        rollouts = over(first, second, version=2)
        groups = [group async for group in generate(rollouts, prompts(4), published={2: ""})]
    assert {int(group.samples.policy_version_max[0]) for group in groups} == {2}
    assert len(groups) == 4 and sum(len(request.prompts) for request in present.requests) == 4


async def test_a_paused_replica_gets_nothing_until_it_is_resumed():
    fakes = FakeRollout(), FakeRollout()
    async with serve(fakes[0]) as first, serve(fakes[1]) as second, RolloutControlClient(first.address) as operator:
        await operator.pause()
        rollouts = over(first, second)
        assert len([group async for group in generate(rollouts, prompts(4))]) == 4
        assert len(fakes[1].requests) >= 4
        assert rollouts._fleet.replicas[0].health is ReplicaHealth.PAUSED
        await operator.resume()
        await rollouts._fleet.look(rollouts._fleet.replicas[0])
        fakes[0].requests.clear()
        assert len([group async for group in generate(rollouts, prompts(4, first=4))]) == 4
        assert fakes[0].requests


async def test_a_paused_replica_is_waited_for_longer_than_one_that_is_gone():
    async def nothing(replica):
        pass

    fake = FakeRollout()
    async with serve(fake) as only, RolloutControlClient(only.address) as operator:
        rollouts = over(only, return_s=0.2)
        await operator.pause()
        await rollouts._fleet.look(rollouts._fleet.replicas[0])
        watching = asyncio.create_task(rollouts._fleet.watch(nothing))
        waiting = asyncio.create_task(anext(generate(rollouts, prompts(1))))
        await asyncio.sleep(1.0)
        assert not waiting.done()
        await operator.resume()
        assert (await waiting).prompt.group_id == "g0"
        await operator.pause()
        await until(lambda: rollouts._fleet.replicas[0].health is ReplicaHealth.PAUSED)
        waiting = asyncio.create_task(anext(generate(rollouts, prompts(1, first=1))))
        await asyncio.sleep(1.5)
        await only.kill()
        with pytest.raises(ServiceUnavailableError, match=r"none came back within 0\.2 s"):
            await waiting
        watching.cancel()


@pytest.mark.parametrize("paused", [True, False])
async def test_a_request_that_a_paused_replica_keeps_over_its_deadline_is_made_again_and_no_other(paused):
    fake = Held()
    async with serve(fake) as only, RolloutControlClient(only.address) as operator:
        rollouts = over(only, timeout_s=0.5)
        asking = asyncio.create_task(anext(generate(rollouts, prompts(1))))
        await until(lambda: fake.requests)
        if not paused:
            with pytest.raises(DeadlineError, match=r"deadlines\.generate_s"):
                await asking
            return
        await operator.pause()
        await until(lambda: rollouts._fleet.replicas[0].health is ReplicaHealth.PAUSED)
        fake.go.set()
        await operator.resume()
        await rollouts._fleet.look(rollouts._fleet.replicas[0])
        assert (await asking).prompt.group_id == "g0"
    assert len(fake.requests) == 2


async def test_a_group_with_aborted_responses_is_not_taken_but_asked_for_again():
    class Interrupted(FakeRollout):
        async def Generate(self, request, context):
            async for answer in super().Generate(request, context):
                if len(self.requests) == 1:
                    answer.samples.finish_reasons = bytes([FinishReason.STOP, FinishReason.ABORT])
                yield answer

    fake = Interrupted()
    async with serve(fake) as replica:
        (group,) = [group async for group in generate(over(replica), prompts(1))]
    assert len(fake.requests) == 2
    assert group.samples.finish_reasons.tolist() == [FinishReason.STOP] * 2


async def test_groups_that_are_lost_with_every_replica_that_gets_them_are_given_up():
    class Fragile(FakeRollout):
        async def Generate(self, request, context):
            self.requests.append(request)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the engine died")
            yield

    fakes = Fragile(), Fragile()
    async with serve(fakes[0]) as first, serve(fakes[1]) as second:
        with pytest.raises(ServiceUnavailableError, match="the groups g0 were lost with their replica 3 times, which is"):
            [group async for group in generate(over(first, second), prompts(1))]
    assert sum(len(fake.requests) for fake in fakes) == 3


async def test_a_group_stays_with_its_replica_while_that_is_healthy():
    fakes = FakeRollout(), FakeRollout()
    async with serve(fakes[0]) as first, serve(fakes[1]) as second:
        rollouts = over(first, second, batch_size=4)
        for _ in range(3):
            async for _ in generate(rollouts, prompts(4)):
                pass
    for fake in fakes:
        assert len({tuple(prompt.group_id for prompt in request.prompts) for request in fake.requests}) == 1
        assert len(fake.requests) == 3


async def test_a_replica_that_leaves_out_a_group_is_a_fault():
    class Forgetful(FakeRollout):
        async def Generate(self, request, context):
            async for answer in super().Generate(request, context):
                yield answer
                return

    async with serve(Forgetful()) as replica:
        with pytest.raises(ServiceFaultError, match="ended its answer without the groups g1"):
            [group async for group in generate(over(replica, batch_size=2), prompts(2))]


async def test_a_sample_of_other_weights_names_both_sides():
    fake = FakeRollout()
    fake.sampled_digest = "aaa"
    async with serve(fake) as replica:
        with pytest.raises(DigestMismatchError) as mismatch:
            [group async for group in generate(over(replica), prompts(1), published={0: "bbb"})]
    message = str(mismatch.value)
    assert "the rollout side is behind" in message
    assert f"replica {replica.address} sampled g0/0 as version 0 from weights aaa" in message
    assert "the trainer published version 0 as bbb" in message


async def test_a_digest_of_an_older_version_is_recognised():
    async with serve(FakeRollout()) as replica:
        groups = [group async for group in generate(over(replica), prompts(1))]
    with pytest.raises(DigestMismatchError, match=r"from weights \(no digest\), which is version -1"):
        check_digests(groups[0].samples, {-1: "", 0: "new"}, "r")
    with pytest.raises(DigestMismatchError, match="no version 0 was published; the newest is 4"):
        check_digests(groups[0].samples, {4: "new"}, "r")
