"""What bounds the beginning of a weight update, and what an error says of it."""

import asyncio

import pytest

from baton.clients import RolloutClient, TrainerClient
from baton.errors import DeadlineError
from baton.testing import FakeRollout, FakeTrainer, serve
from baton.weights import WeightPublisher

STATUS_S = 0.5
"""What the clients give calls that have no limit of their own."""

OPTION = "deadlines.publish_begin_s"


class OpensSlowly(FakeTrainer):
    async def OpenWeightGroup(self, request, context):
        await asyncio.sleep(3 * STATUS_S)
        return await super().OpenWeightGroup(request, context)


class TellsNothing(FakeRollout):
    async def GetStatus(self, request, context):
        await asyncio.sleep(60)


async def publish(trainer, replica, begin_s):
    async with (
        serve(trainer) as sender,
        serve(replica) as receiver,
        TrainerClient(sender.address, timeout_s=STATUS_S) as source,
        RolloutClient(receiver.address, timeout_s=STATUS_S) as target,
    ):
        return await WeightPublisher(source, [target]).publish(1, begin_s=begin_s, timeout_s=20)


async def test_a_group_may_take_as_long_to_open_as_publish_begin_s_says():
    replica = FakeRollout()
    await publish(OpensSlowly(), replica, begin_s=30)
    assert replica.policy_version == 1


async def test_a_group_that_takes_longer_names_the_option():
    with pytest.raises(DeadlineError, match=rf"did not open a weight group within 1 s; raise {OPTION}"):
        await publish(OpensSlowly(), FakeRollout(), begin_s=1)


async def test_a_replica_that_does_not_tell_its_status_is_named_and_no_option_that_would_not_help():
    with pytest.raises(DeadlineError, match=r"RolloutService.GetStatus at .* did not answer within 0.5 s") as caught:
        await publish(FakeTrainer(), TellsNothing(), begin_s=30)
    assert OPTION not in str(caught.value)
