"""Whether a service answers: the standard gRPC health check, and a store's PING. Neither needs a package of its own."""

import asyncio
import time
from urllib.parse import urlsplit

import grpc

from baton.errors import ServiceUnavailableError

_SERVING = b"\x08\x01"
"""grpc.health.v1.HealthCheckResponse{status: SERVING} on the wire."""


async def is_serving(address: str, timeout_s: float = 2.0) -> bool:
    """Whether the gRPC server at `address` (host:port) says that it is SERVING.

    One that answers but has no health service counts as healthy, as it does for gRPC's own clients.
    """
    async with grpc.aio.insecure_channel(address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            return await check(b"", timeout=timeout_s) == _SERVING
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.UNIMPLEMENTED


async def wait_serving(name: str, address: str, within_s: float) -> None:
    """Waits for a service that somebody else started. Raises ServiceUnavailableError after `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while not await is_serving(address):
        if time.monotonic() > deadline:
            raise ServiceUnavailableError(
                f"{name}: no healthy service at {address} within {within_s:g} s; start it, or correct or remove its "
                "address in the run file's services section"
            )
        await asyncio.sleep(0.2)


async def is_answering(store_url: str, timeout_s: float = 2.0) -> bool:
    """Whether a Redis-protocol server answers at `store_url` (redis://, rediss:// or unix://).

    One that asks for a password answers too.
    """
    url = urlsplit(store_url)
    if url.scheme == "unix":
        connecting = asyncio.open_unix_connection(url.path)
    else:
        tls = True if url.scheme == "rediss" else None
        connecting = asyncio.open_connection(url.hostname, url.port or 6379, ssl=tls)
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await connecting
            try:
                writer.write(b"PING\r\n")
                answer = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return answer.startswith((b"+PONG", b"-NOAUTH"))  # while it loads its data it says -LOADING
