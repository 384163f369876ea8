"""The three kinds of store behind one face. Each sends a command once; `store.py` decides what is sent again."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as StoreConnectionError
from redis.exceptions import ReadOnlyError, RedisClusterException

from services.buffer.store_errors import FAILURES, explained, heals
from services.buffer.store_url import StoreUrl

CONNECT_S = 2.0
ANSWER_S = 5.0
"""How long one command may take before its connection counts as dead."""
CONNECTIONS = 32
SCAN_COUNT = 1000


class Client(Protocol):
    """One kind of store. Its methods raise FAILURES, or a BatonError that no repetition changes."""

    async def execute(self, *command: Any) -> Any: ...

    async def pipeline(self, commands: Sequence[Sequence[Any]]) -> list[Any]: ...

    async def facts(self) -> dict[str, dict[str, Any]]:
        """Address of every master -> its INFO."""

    def scan(self, pattern: str) -> AsyncIterator[bytes]:
        """Keys of all masters; some may come twice."""

    async def close(self) -> None: ...


def open_client(url: StoreUrl) -> Client:
    """Does not connect yet. Raises ConfigError for options that cannot be."""
    options = {"socket_timeout": ANSWER_S, "socket_connect_timeout": CONNECT_S, **url.options}
    pool = {name: options.pop(name) for name in ("max_connections", "timeout") if name in options}
    pool = {"max_connections": CONNECTIONS, "timeout": ANSWER_S, **pool}
    kind = UnixDomainSocketConnection if not url.hosts else SSLConnection if url.tls else Connection
    try:
        connection = kind(**options)
        if url.tls:
            connection.ssl_context.get()
    except TypeError as error:  # "... got an unexpected keyword argument 'name'"
        name = str(error).rpartition(" ")[2]
        hint = "; ssl options are of rediss" if name.startswith("'ssl") and not url.tls else ""
        raise url.wrong(f"must have options that redis-py's connections take, not {name}{hint}") from None
    except OSError as error:
        raise url.wrong(f"must name readable files in its ssl options ({error})") from None
    except (ValueError, *FAILURES) as error:
        raise url.wrong(f"must have options that redis-py's connections take ({error})") from None
    options["retry"] = Retry(NoBackoff(), 0)
    if url.kind == "cluster":
        return Cluster(url, options, **pool)
    if url.kind == "sentinel":
        return SentinelMaster(url, options, **pool)
    if url.hosts:
        options |= dict(zip(("host", "port"), url.hosts[0], strict=True))
    return Server(BlockingConnectionPool(connection_class=kind, **pool, **options))


class Server:
    """One server."""

    def __init__(self, pool: BlockingConnectionPool) -> None:
        self._redis = Redis.from_pool(pool)

    async def execute(self, *command: Any) -> Any:
        try:
            return await self._redis.execute_command(*command)
        except ReadOnlyError:
            await self._reconnect()
            raise

    async def pipeline(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        answers = await pipeline.execute(raise_on_error=False)
        if error := _first_error(answers):
            if isinstance(error, ReadOnlyError):
                await self._reconnect()
            raise error
        return answers

    async def facts(self) -> dict[str, dict[str, Any]]:
        return {"": await self._redis.execute_command("INFO")}

    def scan(self, pattern: str) -> AsyncIterator[bytes]:
        return self._redis.scan_iter(match=pattern, count=SCAN_COUNT)

    async def close(self) -> None:
        await self._redis.aclose()

    async def _reconnect(self) -> None:
        """The master became a replica; by now its name may lead to another server."""
        await self._redis.connection_pool.disconnect(inuse_connections=False)


class SentinelMaster(Server):
    """The master that sentinels name."""

    def __init__(self, url: StoreUrl, options: dict[str, Any], **pool: Any) -> None:
        self._sentinels = _Sentinels(url, options)
        kind = SentinelManagedSSLConnection if url.tls else SentinelManagedConnection
        super().__init__(_MasterPool(url.service, self._sentinels, connection_class=kind, **pool, **options))

    async def close(self) -> None:
        await super().close()
        for sentinel in self._sentinels.sentinels:
            await sentinel.aclose()


class _MasterPool(SentinelConnectionPool, BlockingConnectionPool):
    """Asks the sentinels for each new connection, and waits for a free one."""


class _Sentinels(Sentinel):
    """redis-py's, but what no time heals is told as it is, not as a missing master."""

    def __init__(self, url: StoreUrl, options: dict[str, Any]) -> None:
        super().__init__([])
        self._url = url
        own = {name: value for name, value in options.items() if name.startswith(("socket_", "ssl_", "retry"))}
        kind = SSLConnection if url.tls else Connection
        pools = [
            ConnectionPool(connection_class=kind, host=host, port=port, **own, **url.sentinel_login)
            for host, port in url.hosts
        ]
        self.sentinels = [Redis.from_pool(pool) for pool in pools]

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """The master's address, from the first sentinel that has one."""
        problems: list[Exception] = []
        for sentinel in list(self.sentinels):
            try:
                masters = await sentinel.sentinel_masters()
            except FAILURES as error:
                problems.append(error if heals(error) else explained(error, self._url, at_sentinel=True))
                continue
            state = masters.get(service_name)
            if not state:
                known = ", ".join(sorted(masters)) or "none"
                problems.append(self._url.wrong(f"must name a service that its sentinels know; they know {known}"))
            elif self.check_master_state(state, service_name):
                self.sentinels.remove(sentinel)
                self.sentinels.insert(0, sentinel)  # the next connection asks it first
                return state["ip"], state["port"]
            else:
                problems.append(MasterNotFoundError("it is down"))
        if not any(map(heals, problems)):
            raise problems[0]
        raise MasterNotFoundError(f"no sentinel has a working master of {service_name}: {'; '.join(map(str, problems))}")


class Cluster:
    """All masters of a Redis Cluster."""

    def __init__(self, url: StoreUrl, options: dict[str, Any], *, max_connections: int, timeout: float) -> None:
        self._url, self._options, self._wait_s = url, options, timeout
        self._connections = max_connections
        self._free = asyncio.Semaphore(max_connections)
        self._redis = self._new()

    async def execute(self, *command: Any) -> Any:
        async with self._ready() as redis:
            return await redis.execute_command(*command)

    async def pipeline(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        async with self._ready() as redis:
            pipeline = redis.pipeline()
            for command in commands:
                pipeline.execute_command(*command)
            answers = await pipeline.execute(raise_on_error=False)
            if error := _first_error(answers):
                if isinstance(error, RedisCluster.ERRORS_ALLOW_RETRY):
                    await redis.aclose()  # the next command asks for the layout
                raise error
            return answers

    async def facts(self) -> dict[str, dict[str, Any]]:
        async with self._ready() as redis:
            return {node.name: await redis.execute_command("INFO", target_nodes=node) for node in redis.get_primaries()}

    async def scan(self, pattern: str) -> AsyncIterator[bytes]:
        async with self._ready() as redis:
            async for key in redis.scan_iter(match=pattern, count=SCAN_COUNT):
                yield key

    async def close(self) -> None:
        await self._redis.aclose()
        for node in self._redis.get_nodes():  # left open by a client that was about to ask for a new layout
            await node.disconnect()

    @asynccontextmanager
    async def _ready(self) -> AsyncIterator[RedisCluster]:
        """The client with the cluster's layout, and room for one more command."""
        try:
            async with asyncio.timeout(self._wait_s):
                await self._free.acquire()
        except TimeoutError:
            raise StoreConnectionError(f"no connection came free within {self._wait_s:g} s") from None
        try:
            redis = self._redis
            try:
                await redis.initialize()
            except RedisClusterException:  # none of the nodes that it knew: back to those of the URL
                if redis is self._redis:
                    self._redis = self._new()
                raise
            yield redis
        finally:
            self._free.release()

    def _new(self) -> RedisCluster:
        nodes = [ClusterNode(host, port) for host, port in self._url.hosts]
        try:
            most = self._connections + 1  # one for the layout
            return RedisCluster(startup_nodes=nodes, ssl=self._url.tls, max_connections=most, **self._options)
        except TypeError as error:
            name = str(error).rpartition(" ")[2]
            raise self._url.wrong(f"must have options that redis-py's cluster client takes, not {name}") from None


def _first_error(answers: list[Any]) -> Exception | None:
    return next((answer for answer in answers if isinstance(answer, Exception)), None)
