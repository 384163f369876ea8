"""The way between a client and a service, on which an answer can get lost."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

_HEADER_BYTES = 9
_HEADERS = 1
"""Type of the HTTP/2 frame with which every answer of gRPC begins: once it is there, the call was carried out."""


class LossyLink:
    """Forwards connections to `target`, host:port. `address` is where clients find it."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.lost = 0
        """Answers so far that no client has seen."""
        self._meanwhile: Callable[[], object] | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_next_answer(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """The next call is carried out, `meanwhile` happens, then the connection ends without the answer."""
        self._meanwhile = meanwhile

    def lose_nothing(self) -> None:
        """Takes that back, if no answer came since."""
        self._meanwhile = None

    def close(self) -> None:
        """Takes no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                service = socket.create_connection(self._target)
            except OSError:  # it is being started again
                client.close()
                continue
            for forward in (self._requests, self._answers):
                threading.Thread(target=forward, args=(client, service), daemon=True).start()

    def _requests(self, client: socket.socket, service: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(2**16):
                service.sendall(data)
        _end(client, service)

    def _answers(self, client: socket.socket, service: socket.socket) -> None:
        with suppress(OSError), service.makefile("rb") as frames:
            while len(header := frames.read(_HEADER_BYTES)) == _HEADER_BYTES:
                if header[3] == _HEADERS and self._meanwhile:
                    happens, self._meanwhile = self._meanwhile, None
                    self.lost += 1
                    happens()
                    break
                client.sendall(header + frames.read(int.from_bytes(header[:3], "big")))
        _end(client, service)


def _end(*sockets: socket.socket) -> None:
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
