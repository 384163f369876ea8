"""A replica that sleeps: what it serves once it is awake."""

import pytest

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.api.rollout.v1.control_pb2 import IN_FLIGHT_WAIT
from baton.errors import NotReadyError
from services.rollout.service import Replica

HEALTHY = pb.REPLICA_STATE_HEALTHY


class SleepingEngine:
    """An engine that holds weights or not; as vLLM does, it leaves a second sleep of either level at the first."""

    def __init__(self) -> None:
        self.holds_weights, self._asleep = True, False

    def check_sleep(self) -> None:
        """It can."""

    async def sleep(self, level: int) -> None:
        """Level 2 drops the weights."""
        if not self._asleep:
            self._asleep, self.holds_weights = True, level == 1

    async def wake(self) -> None:
        """The memory is there again."""
        self._asleep = False


def replica() -> tuple[Replica, SleepingEngine]:
    """One that serves version 3."""
    engine = SleepingEngine()
    made = Replica(engine, "model", max_outstanding=8)
    commit(made, 3)
    return made, engine


def commit(replica: Replica, version: int) -> None:
    replica.gate.begin(version)
    replica.gate.arrived(version, f"d{version}")
    replica.gate.commit(version, f"d{version}")


@pytest.mark.parametrize("levels", [(1,), (1, 1), (2,), (2, 1), (2, 1, 1)])
async def test_a_woken_replica_serves_its_version_only_if_no_sleep_dropped_the_weights(levels: tuple[int, ...]) -> None:
    slept, engine = replica()
    for level in levels:
        await slept.sleep(level)
    await slept.wake()
    if engine.holds_weights:
        slept.gate.admit(3, None)
    else:
        with pytest.raises(NotReadyError, match="dropped by a sleep of level 2"):
            slept.gate.admit(3, None)


async def test_weights_that_came_after_a_drop_are_served_after_the_next_sleep() -> None:
    slept, _ = replica()
    await slept.sleep(2)
    await slept.wake()
    commit(slept, 3)
    await slept.sleep(1)
    await slept.wake()
    assert slept.gate.state == HEALTHY
    slept.gate.admit(3, None)


async def test_a_replica_that_sleeps_cannot_be_paused_so_that_only_waking_it_has_it_serve_again() -> None:
    slept, _ = replica()
    await slept.sleep(1)
    with pytest.raises(NotReadyError, match="asleep; call Wake"):
        await slept.pause(IN_FLIGHT_WAIT, 1.0)
    assert slept.gate.state == pb.REPLICA_STATE_ASLEEP
    await slept.wake()
    slept.gate.admit(3, None)


async def test_a_replica_does_not_sleep_while_an_adapter_arrives_which_would_be_loaded_into_memory_that_is_gone() -> None:
    serving, _ = replica()
    serving.gate.begin(4, serving=True)
    with pytest.raises(NotReadyError, match="cannot sleep yet: version 4 is arriving; ask again"):
        await serving.sleep(1)
    serving.gate.admit(3, None)
    serving.gate.arrived(4, "d4")
    await serving.sleep(1)
    with pytest.raises(NotReadyError, match="cannot be committed"):
        serving.gate.commit(4, "d4")
