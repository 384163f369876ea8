"""The connection to the Redis-protocol store: the one file that imports redis."""

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

from redis import exceptions as failures
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from baton.errors import BackpressureError, ConfigError, StoreUnavailableError

RETRY_S = 5.0
"""How long a command is sent again while the store cannot be reached: enough for a restart of the store."""
RETRY_PAUSE_S = 0.1
CONNECT_S = 2.0
ANSWER_S = 5.0
"""How long one command may take before its connection counts as dead."""
CONNECTIONS = 32

log = logging.getLogger(__name__)


def hide_password(url: str) -> str:
    """The URL for messages and logs."""
    url = re.sub(r"://([^/?@:]*):[^/?]*@", r"://\1:***@", url)
    return re.sub(r"([?&]password=)[^&]*", r"\1***", url)


class Store:
    """Sends commands, and runs the scripts of `lua/`: every change of more than one key is one of them.

    A command is sent again when the store went away before it answered, so whatever is sent must be idempotent.
    """

    def __init__(self, url: str) -> None:
        """Does not connect yet. Raises ConfigError for a URL that cannot be read."""
        self.shown_url = hide_password(url)
        try:
            pool = BlockingConnectionPool.from_url(
                url, max_connections=CONNECTIONS, timeout=ANSWER_S, socket_timeout=ANSWER_S,
                socket_connect_timeout=CONNECT_S, retry=Retry(NoBackoff(), 0),
            )  # fmt: skip
        except ValueError as error:
            rule = "must be redis://[user:password@]host:port[/database]"
            raise ConfigError(f"store.url: got {self.shown_url!r}; {rule} ({error})") from None
        self._redis = Redis.from_pool(pool)
        self._scripts: dict[str, tuple[str, str]] = {}
        for entry in files("services.buffer").joinpath("lua").iterdir():
            if entry.name.endswith(".lua"):
                text = entry.read_text()
                self._scripts[entry.name] = (text, hashlib.sha1(text.encode()).hexdigest())

    async def check(self) -> None:
        """Makes sure that the store answers and keeps what it is given. Raises StoreUnavailableError or ConfigError."""
        facts = await self.call("INFO")
        policy = facts.get("maxmemory_policy", "noeviction")
        if facts.get("maxmemory") and policy.startswith("allkeys"):
            raise ConfigError(
                f"the store at {self.shown_url} drops keys when it is full (maxmemory-policy {policy}), samples included; "
                "set maxmemory-policy noeviction there"
            )
        if not facts.get("aof_enabled"):
            log.warning(
                "the store at %s keeps no append-only file, so it forgets when it dies; set appendonly yes", self.shown_url
            )

    async def call(self, *command: Any) -> Any:
        """The answer to one command. Raises StoreUnavailableError, or BackpressureError if the store is full."""
        with self._translated():
            return await self._send(*command)

    async def run(self, script: str, keys: Sequence[str], *arguments: Any) -> list[Any]:
        """What `lua/<script>.lua` returns. Raises as `call`."""
        text, digest = self._scripts[f"{script}.lua"]
        with self._translated():
            try:
                return await self._send("EVALSHA", digest, len(keys), *keys, *arguments)
            except failures.NoScriptError:  # its first use, or a store that restarted
                return await self._send("EVAL", text, len(keys), *keys, *arguments)

    async def close(self) -> None:
        """Ends all connections."""
        await self._redis.aclose()

    async def _send(self, *command: Any) -> Any:
        give_up = time.monotonic() + RETRY_S
        while True:
            try:
                return await self._redis.execute_command(*command)
            except failures.AuthenticationError:  # a ConnectionError to redis-py, but time does not heal it
                raise
            except (failures.ConnectionError, failures.TimeoutError):
                if time.monotonic() > give_up:
                    raise
                await asyncio.sleep(RETRY_PAUSE_S)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except failures.OutOfMemoryError as error:
            raise BackpressureError(
                f"the store at {self.shown_url} is full ({error}); raise its maxmemory, or delete trained episodes"
            ) from error
        except failures.RedisError as error:
            raise StoreUnavailableError(
                f"the store at {self.shown_url} cannot be used: {error}; see that it runs and that store.url names it"
            ) from error
