"""A second face beside gRPC: uvicorn in the same event loop, on a socket that is bound before anything heavy is loaded."""

import socket
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import uvicorn

CLOSE_S = 2
"""How long answers in flight may take when the server ends."""


class HttpServer(uvicorn.Server):
    """uvicorn in the gRPC server's event loop, which already owns the signals."""

    def __init__(self, app: Any, listener: socket.socket) -> None:
        """`app` speaks ASGI; `listener` is bound."""
        super().__init__(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=CLOSE_S))
        self._listener = listener

    def capture_signals(self) -> AbstractContextManager[None]:
        """Captures none."""
        return nullcontext()

    async def run_until_exit(self) -> None:
        """Serves until `should_exit` is set."""
        await self.serve(sockets=[self._listener])


def listen(host: str, port: int, option: str) -> tuple[socket.socket, str]:
    """A bound socket and its address as host:port. Raises SystemExit, naming the `option` of the port, if it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise SystemExit(
            f"cannot listen on {host}:{port} ({error}): end what uses it, or set {option} in the run file (0 takes a "
            "free one)"
        ) from error
    shown = f"[{host}]" if ":" in host else host
    return listener, f"{shown}:{listener.getsockname()[1]}"
