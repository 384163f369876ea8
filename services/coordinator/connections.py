"""The services that a run works with: their addresses, clients, and errors that name them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from baton.clients import BufferClient, LedgerClient, RelayClient, RolloutClient, ScoringClient, TrainerClient
from baton.config import RunConfig
from baton.config.services import DeadlinesConfig
from baton.config.trainable import MAIN_GROUP
from baton.errors import BatonError, ConfigError, DeadlineError, ServiceFaultError, ServiceUnavailableError
from baton.weights import WeightPublisher

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)

STATUS_S = 10.0
"""Deadline of one question after a service's status; start-up asks again until its own deadline."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """host:port of each service; at least one rollout, unless nothing is rolled out."""

    buffer: str
    trainer: str
    rollouts: tuple[str, ...]
    groups: Mapping[str, str] = field(default_factory=dict)
    """Of each trainer group but the one that trains, by its name."""


@dataclass(frozen=True, slots=True)
class Connections:
    """Clients of all services. Close it when the run has ended."""

    buffer: BufferClient
    relay: RelayClient
    ledger: LedgerClient
    trainers: Mapping[str, TrainerClient]
    """By trainer group, as are the next."""
    scoring: Mapping[str, ScoringClient]
    rollouts: list[RolloutClient]
    publisher: WeightPublisher = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "publisher", WeightPublisher(self.trainer, self.rollouts))

    @property
    def trainer(self) -> TrainerClient:
        """The group that trains."""
        return self.trainers[MAIN_GROUP]

    @classmethod
    def open(cls, addresses: Addresses, deadlines: DeadlinesConfig) -> "Connections":
        """Opens the channels; nothing is sent yet."""
        groups = {MAIN_GROUP: addresses.trainer, **addresses.groups}
        return cls(
            BufferClient(addresses.buffer, timeout_s=deadlines.buffer_s),
            RelayClient(addresses.buffer, timeout_s=deadlines.buffer_s),
            LedgerClient(addresses.buffer, timeout_s=deadlines.buffer_s),
            {name: TrainerClient(address, timeout_s=STATUS_S) for name, address in groups.items()},
            {name: ScoringClient(address, timeout_s=STATUS_S) for name, address in groups.items()},
            [RolloutClient(address, timeout_s=STATUS_S) for address in addresses.rollouts],
        )

    @property
    def buffer_name(self) -> str:
        """For messages and status, as are the next two."""
        return f"buffer at {self.buffer.address}"

    @property
    def trainer_name(self) -> str:
        return self.group_name(MAIN_GROUP)

    def group_name(self, group: str) -> str:
        """Of a trainer group."""
        called = "trainer" if group == MAIN_GROUP else f"trainer group {group}"
        return f"{called} at {self.trainers[group].address}"

    @property
    def rollout_names(self) -> str:
        return f"rollout at {', '.join(replica.address for replica in self.rollouts)}"

    def at_buffer(self) -> AbstractContextManager[None]:
        """Around calls to the buffer."""
        return blame(self.buffer_name, "deadlines.buffer_s")

    def at_trainer(self, deadline: str) -> AbstractContextManager[None]:
        """Around calls to the trainer."""
        return blame(self.trainer_name, deadline)

    async def close(self) -> None:
        """Ends all channels."""
        several = (*self.trainers.values(), *self.scoring.values(), *self.rollouts)
        for client in (self.buffer, self.relay, self.ledger, *several):
            await client.close()


def addresses(
    config: RunConfig, buffer: str | None, trainer: str | None, rollouts: Sequence[str] | None, groups: Sequence[str] | None
) -> Addresses:
    """What the command line gives, else the run file; `groups` are NAME=HOST:PORT.

    Raises ConfigError that names what neither has.
    """
    services = config.services
    given = dict(group.split("=", 1) for group in groups or ())
    others = {name: given.get(name) or services.group_addresses.get(name) for name in config.trainer_groups()}
    others.pop(MAIN_GROUP)
    found = {
        "--buffer": buffer or services.buffer_address,
        "--trainer": trainer or services.trainer_address,
        "--rollout": config.is_offline or tuple(rollouts or services.rollout_addresses),
    } | {f"--trainer-group {name}": address for name, address in others.items()}
    if missing := [option for option, address in found.items() if not address]:
        options = ", ".join(f"{option}{'=' if ' ' in option else ' '}HOST:PORT" for option in missing)
        raise ConfigError(f"no address for {options}: give it, or addresses in the run file's services")
    rolled_out = () if config.is_offline else found["--rollout"]
    return Addresses(found["--buffer"], found["--trainer"], rolled_out, others)


async def until_ready(service: str, ask: Callable[[], Awaitable[Answer]], timeout_s: float) -> Answer:
    """Asks until the service answers, and returns that. Raises DeadlineError, naming it, after `timeout_s`."""
    last = "no answer"
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    return await ask()
                except (DeadlineError, ServiceUnavailableError) as error:
                    if str(error) != last:
                        log.info("waiting for %s: %s", service, error)
                    last = str(error)
                    await asyncio.sleep(0.2)
    except TimeoutError as error:
        raise DeadlineError(
            f"{service} was not ready within {timeout_s:g} s ({last}); start it, correct its address, or raise "
            "deadlines.startup_s"
        ) from error


@contextmanager
def blame(service: str, deadline: str | None) -> Iterator[None]:
    """Gives errors the name of the service, like "trainer at 127.0.0.1:5000", and the fix that only the caller knows.

    `deadline` is the option that bounds the calls; None if their own errors tell it.
    """
    try:
        yield
    except BatonError as error:
        fix = ""
        if isinstance(error, DeadlineError) and deadline:
            fix = f"; raise {deadline} if it is only slow"
        elif isinstance(error, ServiceFaultError):
            fix = "; its log has the details"
        raise type(error)(f"{service}: {error}{fix}") from error
