"""Notices a service that died while a long call waits for it, so that no deadline has to be sat out.

A connection is opened and closed: the kernel answers for a process that is busy computing, and refuses for one that is gone.
"""

import asyncio
import os
from collections.abc import Mapping

from baton.errors import ServiceUnavailableError

INTERVAL_S = 1.0
"""Between two looks at a service."""

CONNECT_S = 10.0
"""How long a machine may take to accept a connection."""

MISSES = 3
"""So many looks in a row must fail; one alone may be a full backlog."""


async def watch(services: Mapping[str, str]) -> None:
    """Waits, for ever, until one of the services (name -> host:port) is gone; then raises ServiceUnavailableError."""
    async with asyncio.TaskGroup() as tasks:
        for name, address in services.items():
            tasks.create_task(_watch_one(name, address))


async def _watch_one(name: str, address: str) -> None:
    misses = 0
    while True:
        try:
            await look(address)
            misses = 0
        except OSError as error:  # TimeoutError too
            misses += 1
            if misses == MISSES:
                raise ServiceUnavailableError(
                    f"{name} at {address} is gone: {why(error)}; see its log, start it again, and resume the run"
                ) from error
        await asyncio.sleep(INTERVAL_S)


def why(error: OSError) -> str:
    """What `look` raised, in words."""
    return os.strerror(error.errno).lower() if error.errno else f"it accepts no connection within {CONNECT_S:g} s"


async def look(address: str) -> None:
    """Connects, and hangs up. Raises OSError if nobody accepts within CONNECT_S."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(CONNECT_S):
        _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    writer.close()
