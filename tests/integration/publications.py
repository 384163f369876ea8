"""The coordinator's publishing at work on real services, which a test may stop or kill at a moment of its choice."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import psutil
from rollout_side import collect
from training import train

from baton.clients import RolloutClient
from baton.clients.rollout import Prompt, SamplingParams
from baton.config.services import DeadlinesConfig
from baton.errors import BatonError
from baton.local.process_tree import descendants, kill_below
from baton.publication import Publication
from processes import ServiceProcess, StaticProcess, TrainerProcess
from services.coordinator.connections import Addresses, Connections
from services.coordinator.fleet import Fleet
from services.coordinator.publishing import LEAVE_S, Publishing
from services.coordinator.replicas import Replica, ReplicaHealth
from services.coordinator.state import RunState

DEADLINES = DeadlinesConfig(publish_begin_s=20, publish_s=8, publish_commit_s=8, restart_s=60, catch_up_s=2)
BOUND_S = DEADLINES.publish_begin_s + DEADLINES.publish_s + DEADLINES.publish_commit_s + LEAVE_S + 25
"""One version, whatever happens to one replica: each phase's deadline once, one engine that does not come out of an update,
and the version again without it, on a busy machine."""
RETURN_S = 150.0
"""A replica that is back is caught up by then."""
EPISODES = count()


class Watched(RolloutClient):
    """Does something to its replica just before a call: `before["update_weights"]` or `["commit_weights"]`, once."""

    def __init__(self, address: str) -> None:
        super().__init__(address, timeout_s=30)
        self.before: dict[str, Callable[[], None]] = {}

    async def update_weights(self, *args: Any, **options: Any) -> Any:
        self.before.pop("update_weights", lambda: None)()
        return await super().update_weights(*args, **options)

    async def commit_weights(self, *args: Any, **options: Any) -> Any:
        self.before.pop("commit_weights", lambda: None)()
        return await super().commit_weights(*args, **options)


@dataclass
class Crew:
    """Processes that tests share, and the newest version."""

    trainer: TrainerProcess
    replicas: list[StaticProcess]
    buffer: ServiceProcess
    run_id: str
    version: int = 0


@dataclass
class Stage:
    """One test's coordinator."""

    crew: Crew
    clients: list[Watched]
    fleet: Fleet
    publishing: Publishing
    services: Connections
    took_s: float = field(default=0.0)

    async def publish(self) -> Publication:
        """New weights, as the next version; `took_s` is how long that took."""
        await train(self.services.trainer, self.crew.buffer.address, self.crew.run_id, next(EPISODES))
        started = time.monotonic()
        try:
            publication = await self.publishing.next_version()
        finally:
            self.took_s = time.monotonic() - started
        self.crew.version = publication.policy_version
        return publication

    async def serves(self, index: int, publication: Publication) -> None:
        """Fails unless the replica answers by this version, with its digest."""
        stream = self.clients[index].generate(
            [Prompt("g", token_ids=[5, 6, 7])], sampling=SamplingParams(temperature=0.0, max_new_tokens=4),
            exact_version=publication.policy_version, timeout_s=60,
        )  # fmt: skip
        samples = (await collect(stream))["g"].samples
        assert samples.weights_digests == [publication.weights_digest]

    async def serves_nothing(self, index: int) -> str:
        """Fails if the replica answers at any version; returns why it does not."""
        try:
            await collect(self.clients[index].generate([Prompt("g", token_ids=[5])], timeout_s=3))
        except BatonError as error:
            return str(error)
        raise AssertionError("it answered")

    async def until(self, condition: Callable[[Replica], bool], index: int) -> float:
        """Seconds until the coordinator sees the replica so."""
        started = time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(RETURN_S):
                while not condition(self.fleet.replicas[index]):
                    await asyncio.sleep(0.05)
        seen = self.fleet.replicas[index]
        assert condition(seen), f"{seen.health}: {seen.reason}"
        return time.monotonic() - started

    async def is_caught_up(self, index: int, publication: Publication) -> float:
        """Seconds until a replica that is back serves the version."""
        version = publication.policy_version
        seconds = await self.until(lambda seen: seen.health is ReplicaHealth.HEALTHY and seen.version == version, index)
        await self.serves(index, publication)
        return seconds


@asynccontextmanager
async def on_stage(crew: Crew, replicas: Sequence[StaticProcess] | None = None) -> AsyncIterator[Stage]:
    """A coordinator's publishing, which looks at its replicas meanwhile."""
    rollouts = crew.replicas if replicas is None else replicas
    addresses = Addresses(crew.buffer.address, crew.trainer.address, tuple(one.address for one in rollouts))
    opened = Connections.open(addresses, DEADLINES)
    for client in opened.rollouts:
        await client.close()
    services = replace(opened, rollouts=[Watched(one.address) for one in rollouts])
    fleet = Fleet(services.rollouts, return_s=DEADLINES.restart_s)
    state = RunState(crew.run_id, 1, "", policy_version=crew.version)
    fleet.version = crew.version
    publishing = Publishing(services, fleet, state, DEADLINES)
    watching = asyncio.create_task(fleet.watch(publishing.catch_up))
    try:
        yield Stage(crew, services.rollouts, fleet, publishing, services)
    finally:
        watching.cancel()
        await services.close()


def send_signal(process: ServiceProcess, number: signal.Signals) -> None:
    """To all that is below torchrun, or below a service of one process."""
    for pid in descendants(process.popen.pid):
        os.kill(pid, number)


def kill(process: ServiceProcess) -> None:
    """kill -9 of all of it; returns when nothing is left."""
    below = [psutil.Process(pid) for pid in descendants(process.popen.pid)]
    kill_below(process.popen.pid)  # and then the service, with which its resource tracker ends
    process.kill()
    psutil.wait_procs(below, timeout=10)
    process.ready_file.unlink(missing_ok=True)
