"""The store: commands and scripts, sent again while it restarts or fails over.

`store_url.py` says which URLs there are, `store_clients.py` speaks to each kind of store, and `store_errors.py` says what
its errors mean. No other file imports redis.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError

from baton.errors import ConfigError
from services.buffer.store_clients import open_client
from services.buffer.store_errors import FAILURES, explained, heals
from services.buffer.store_url import parse

RETRY_PAUSE_S = 0.1

log = logging.getLogger(__name__)


class Store:
    """Sends commands, and runs the scripts of `lua/`: every change of more than one key is one of them.

    A command is sent again when the store went away before it answered, so whatever is sent must be idempotent. Wrong URLs,
    logins and certificates are ConfigErrors at once; a store that stays away is a StoreUnavailableError, a full one a
    BackpressureError.
    """

    def __init__(self, url: str, *, retry_s: float) -> None:
        """Does not connect yet. `retry_s`: how long a command is sent again. Raises ConfigError for a URL that cannot be
        read."""
        self._url = parse(url)
        self._retry_s = retry_s
        self.shown_url = self._url.shown
        self._client = open_client(self._url)
        self._scripts: dict[str, tuple[str, str]] = {}
        for entry in files("services.buffer").joinpath("lua").iterdir():
            if entry.name.endswith(".lua"):
                text = entry.read_text()
                self._scripts[entry.name] = (text, hashlib.sha1(text.encode()).hexdigest())

    async def check(self) -> None:
        """Makes sure that the store, or each of its masters, answers and keeps what it is given. Raises as `call`."""
        for master, facts in (await self._insist(self._client.facts)).items():
            self._check_kind(facts)
            where = f"the store at {self.shown_url}" + (f", node {master}," if master else "")
            policy = facts.get("maxmemory_policy", "noeviction")
            if facts.get("maxmemory") and policy.startswith("allkeys"):
                raise ConfigError(
                    f"{where} drops keys when it is full (maxmemory-policy {policy}), samples included; "
                    "set maxmemory-policy noeviction there"
                )
            if not facts.get("aof_enabled"):
                log.warning("%s keeps no append-only file, so it forgets when it dies; set appendonly yes", where)

    def _check_kind(self, facts: dict[str, Any]) -> None:
        if self._url.kind != "server":
            return
        mode = facts.get("redis_mode") or facts.get("server_mode")  # Redis, Valkey
        if mode == "cluster":
            raise self._url.wrong("must begin with redis+cluster:// or rediss+cluster://, since a cluster is there")
        if mode == "sentinel":
            raise self._url.wrong("must be redis+sentinel://host:port/service, since a sentinel is there")
        if facts.get("role") == "slave":
            raise self._url.wrong("must name a master; a replica is there, which takes no writes")

    async def call(self, *command: Any) -> Any:
        """The answer to one command. Raises ConfigError, StoreUnavailableError or BackpressureError."""
        return await self._insist(lambda: self._client.execute(*command))

    async def pipeline(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The answers to several commands, sent in one go. All keys share a slot. Raises as `call` if one of them fails;
        others may have been carried out then."""
        return await self._insist(lambda: self._client.pipeline(commands))

    async def run(self, script: str, keys: Sequence[str], *arguments: Any) -> list[Any]:
        """What `lua/<script>.lua` returns. Raises as `call`."""
        return await self._insist(lambda: self._evaluate(script, keys, arguments))

    async def scan(self, pattern: str) -> AsyncIterator[bytes]:
        """Yields the keys that match, each once, of all masters. One that comes or goes meanwhile may be left out."""
        seen: set[bytes] = set()
        give_up = None
        while True:
            try:
                async for key in self._client.scan(pattern):
                    if key not in seen:
                        seen.add(key)
                        yield key
                return
            except FAILURES as error:  # another server has another order, so the scan starts anew
                give_up = give_up or time.monotonic() + self._retry_s
                await self._pause(error, give_up)

    async def close(self) -> None:
        """Ends all connections."""
        await self._client.close()

    async def _evaluate(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> list[Any]:
        text, digest = self._scripts[f"{script}.lua"]
        try:
            return await self._client.execute("EVALSHA", digest, len(keys), *keys, *arguments)
        except NoScriptError:  # its first use at this server, or since its restart
            pass
        return await self._client.execute("EVAL", text, len(keys), *keys, *arguments)

    async def _insist(self, attempt: Callable[[], Awaitable[Any]]) -> Any:
        give_up = time.monotonic() + self._retry_s
        while True:
            try:
                return await attempt()
            except FAILURES as error:
                await self._pause(error, give_up)

    async def _pause(self, error: Exception, give_up: float) -> None:
        """Before the next attempt. Raises the error for the caller if there is none."""
        if not heals(error) or time.monotonic() > give_up:
            raise explained(error, self._url) from error
        await asyncio.sleep(RETRY_PAUSE_S)
