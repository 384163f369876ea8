"""The server kit: every service starts, reports health, maps errors and drains the same way."""

import argparse
import asyncio
import ctypes
import faulthandler
import json
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.common.interceptors import ErrorInterceptor

DRAIN_S = 5.0
"""How long calls in flight may go on after SIGTERM."""

GRPC_BYTES = 4 * 2**20
"""The most of one message that gRPC takes by default."""

_OPTIONS = [
    ("grpc.so_reuseport", 0),  # a second server on the same port must fail, not share it
    ("grpc.http2.max_ping_strikes", 0),  # keepalives in a long silent call are no abuse
    ("grpc.server.max_pending_requests", 50_000),  # beyond 1,000 that arrive at once gRPC would cancel some, unsaid
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    ("grpc.server_max_unrequested_time_in_server", 86_400),  # after 30 s a busy service would lose calls
]

log = logging.getLogger(__name__)


def service_arguments(description: str) -> argparse.ArgumentParser:
    """The options that every service takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--run-file", type=Path, required=True, help="the run's YAML file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one option of the run file"
    )
    parser.add_argument(
        "--listen", default="127.0.0.1:0",
        help="host:port of the gRPC server, where port 0 takes a free one; or unix-abstract:name, for this machine alone"
    )
    parser.add_argument("--ready-file", type=Path, help="written once the service answers: {address, pid}")
    return parser


def configure_logging(service: str) -> None:
    """One line a message on stderr, with the service's name. SIGUSR1 writes there what every thread is doing."""
    logging.basicConfig(
        level=os.environ.get("BATON_LOG_LEVEL", "INFO"),
        format=f"%(asctime)s %(levelname).1s {service} %(name)s: %(message)s",
        force=True,
    )
    faulthandler.register(signal.SIGUSR1, all_threads=True)


def end_with_parent(by: signal.Signals = signal.SIGTERM) -> None:
    """Asks the kernel to send a signal to this process when the one that started it dies, however it dies (Linux). It comes
    several times from a parent of several threads."""
    if hasattr(ctypes, "CDLL") and os.uname().sysname == "Linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, by)


def write_ready_file(path: Path, facts: dict[str, object]) -> None:
    """Writes `facts` so that a reader sees all of it or nothing."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(facts))
    partial.replace(path)


class Server:
    """A grpc.aio server with health, reflection, error mapping, and a drain on SIGTERM or SIGINT."""

    def __init__(self, services: Sequence[str], listen: str, *, request_bytes: int = GRPC_BYTES) -> None:
        """`services` are full names of gRPC services; `listen` as --listen; `request_bytes`: the most of one message to
        them. Raises SystemExit if `listen` is taken."""
        self.services = services
        self.stopping = asyncio.Event()
        options = [*_OPTIONS, ("grpc.max_receive_message_length", request_bytes)]
        self.grpc = grpc.aio.server(interceptors=[ErrorInterceptor()], options=options)
        host, _, port = listen.rpartition(":")
        try:
            bound = self.grpc.add_insecure_port(listen)
        except RuntimeError:
            bound = 0
        is_socket = host.startswith("unix")
        if bound == 0:
            why = "it is taken" if is_socket else f"port {port} is taken, or {host} is not an address of this machine"
            raise SystemExit(
                f"cannot listen on {listen}: {why}. "
                "End what uses it, or set another port in the run file's services section (0 takes a free one)."
            )
        self.address = listen if is_socket else f"{host}:{bound}"
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], self.grpc)

    async def run(self, ready_file: Path | None = None, on_stop: Callable[[], Awaitable[None]] | None = None) -> None:
        """Serves until SIGTERM or SIGINT, then finishes calls in flight (DRAIN_S at most) and calls `on_stop`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        await self.grpc.start()
        for name in ("", *self.services):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        if ready_file:
            write_ready_file(ready_file, {"address": self.address, "pid": os.getpid()})
        log.info("serving %s at %s", ", ".join(self.services), self.address)
        await self.stopping.wait()
        await self._health.enter_graceful_shutdown()
        if on_stop:
            await on_stop()
        await self.grpc.stop(DRAIN_S)
        log.info("stopped")
