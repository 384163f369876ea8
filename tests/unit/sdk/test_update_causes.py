"""Of an update that breaks off the cause is raised, not what others say of the one that they waited for in vain."""

import asyncio
import time

import pytest

from baton.clients import RolloutClient, TrainerClient
from baton.errors import DeadlineError, ServiceFaultError
from baton.testing import FakeRollout, FakeTrainer, serve
from baton.weights import CAUSE_S, WeightPublisher

BUSY_S = 20.0
"""What a busy machine may add."""


class WaitsInVain(FakeTrainer):
    async def PublishWeights(self, request, context):
        raise DeadlineError("a member of the group died")


class Breaks(FakeRollout):
    async def UpdateWeights(self, request, context):
        await asyncio.sleep(0.3)
        raise ServiceFaultError("no room for the weights")


class Hangs(FakeRollout):
    async def UpdateWeights(self, request, context):
        await asyncio.sleep(60)


@pytest.mark.parametrize(
    ("replicas", "kind", "cause"),
    [((Hangs, Breaks), ServiceFaultError, "no room"), ((Hangs, Hangs), DeadlineError, "a member of the group died")],
    ids=["one has an error", "all hang"],
)
async def test_the_cause_is_waited_for_a_little_and_raised(replicas, kind, cause) -> None:
    first, second = replicas
    async with (
        serve(WaitsInVain()) as trainer,
        serve(first()) as one,
        serve(second()) as other,
        TrainerClient(trainer.address) as sender,
        RolloutClient(one.address) as a,
        RolloutClient(other.address) as b,
    ):
        begun = time.monotonic()
        with pytest.raises(kind, match=cause):
            await WeightPublisher(sender, [a, b]).publish(1)
        assert time.monotonic() - begun < CAUSE_S + BUSY_S
