"""The fakes keep the rules of the services that they stand for."""

import asyncio

import pytest

from baton.clients import RolloutClient, TrainerClient
from baton.clients.rollout import Prompt, SamplingParams
from baton.errors import BatonError, DigestMismatchError, NotFoundError, NotReadyError, StalePolicyError
from baton.samples import FinishReason
from baton.testing import FakeRollout, FakeTrainer, serve
from baton.weights import WeightPublisher


@pytest.fixture
async def pair():
    """A trainer's and a replica's client."""
    async with serve(FakeTrainer()) as trainer, serve(FakeRollout()) as replica:
        clients = TrainerClient(trainer.address, timeout_s=20), RolloutClient(replica.address, timeout_s=20)
        yield clients
        for client in clients:
            await client.close()


async def sample(replica, **options):
    return await anext(replica.generate([Prompt("g", text="hello")], timeout_s=20, **options))


async def test_published_weights_are_served_under_their_version_and_digest(pair):
    trainer, replica = pair
    sent = await WeightPublisher(trainer, [replica]).publish(4, timeout_s=20)
    status = await replica.get_status()
    assert (status.policy_version, status.weights_digest) == (4, sent.weights_digest)
    made = await sample(replica, exact_version=4, sampling=SamplingParams(n=2))
    assert made.samples.sample_ids == ["g/0", "g/1"]
    assert made.samples.weights_digests == [sent.weights_digest] * 2
    assert made.samples.policy_version_max.tolist() == [4, 4]


async def test_a_replica_that_was_started_again_gets_its_weights_over_a_new_group():
    first, second = FakeRollout(), FakeRollout()
    async with (
        serve(FakeTrainer()) as trainer, TrainerClient(trainer.address, timeout_s=20) as sender,
        serve(first) as replica, RolloutClient(replica.address, timeout_s=20) as receiver,
    ):  # fmt: skip
        publisher = WeightPublisher(sender, [receiver])
        for version in (1, 2):
            await publisher.publish(version, timeout_s=20)
        await replica.kill()
        async with serve(second, port=int(replica.address.rpartition(":")[2])):
            await publisher.publish(2, timeout_s=20)
    before = {update.group.group_id for update in first.updates}
    assert len(first.updates) == 2 and len(before) == 1
    assert [update.group.group_id in before for update in second.updates] == [True, False], "refused, and opened anew"
    assert [bool(update.group.senders) for update in (*first.updates, *second.updates)] == [True, False, False, True]
    assert second.policy_version == 2


async def test_other_versions_than_the_served_one_are_refused(pair):
    _, replica = pair
    for options in ({"exact_version": 1}, {"min_version": 1}):
        with pytest.raises(StalePolicyError, match="version 1 was asked for, but version 0 is served"):
            await sample(replica, **options)


async def test_a_replica_serves_nothing_between_update_and_commit(pair):
    trainer, replica = pair
    group = await trainer.open_weight_group(1)
    update = replica.update_weights(1, group, first_rank=1, timeout_s=20)
    await asyncio.gather(trainer.publish_weights(group.group_id, 1, timeout_s=20), update)
    with pytest.raises(NotReadyError, match="UPDATING"):
        await sample(replica)
    with pytest.raises(DigestMismatchError):
        await replica.commit_weights(1, "something else")


async def test_a_failed_update_leaves_the_replica_stale(pair):
    trainer, replica = pair
    group = await trainer.open_weight_group(1)
    with pytest.raises(BatonError):
        await replica.update_weights(1, group, first_rank=1, timeout_s=0.2)  # nobody publishes
    with pytest.raises(NotReadyError, match="STALE"):
        await sample(replica)
    with pytest.raises(NotFoundError, match="no open weight group old"):
        await trainer.publish_weights("old", 1, timeout_s=1)


async def test_responses_are_cut_at_the_token_limit():
    fake = FakeRollout(lambda prompt, index, version: "abcdef")
    async with serve(fake) as served, RolloutClient(served.address) as replica:
        made = await sample(replica, sampling=SamplingParams(max_new_tokens=2))
    assert (made.texts, made.samples.finish_reasons.tolist()) == (["ab"], [FinishReason.LENGTH])
