"""Starts the buffer service: `python -m services.buffer --run-file run.yaml`."""

import argparse
import asyncio
from collections.abc import Sequence

from services.common.server import Server, configure_logging, service_arguments


async def serve(arguments: argparse.Namespace) -> None:
    """Serves until SIGTERM. Raises BatonError if the run file is wrong or the store is not there."""
    # imported late, so that --help answers at once
    from baton.api.buffer.v1.buffer_pb2_grpc import add_BufferServiceServicer_to_server
    from baton.config import ConfigError, load_run
    from services.buffer.chunks import ChunkCache
    from services.buffer.leases import Leases
    from services.buffer.ledger import Ledger
    from services.buffer.servicer import BufferServicer
    from services.buffer.state import RunState
    from services.buffer.store import Store

    run = load_run(arguments.run_file, arguments.set)
    url = arguments.store or run.store.url
    if url is None:
        raise ConfigError("store.url: not set, and this service starts no store; set it, or add --store redis://HOST:PORT")
    store = Store(url)
    await store.check()
    server = Server("baton.api.buffer.v1.BufferService", arguments.listen)
    chunks = ChunkCache(store)
    servicer = BufferServicer(Ledger(store, chunks), Leases(store, chunks, run.store.lease_timeout_s), RunState(store))
    add_BufferServiceServicer_to_server(servicer, server.grpc)
    await server.run(arguments.ready_file)
    await store.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line and serves; an error that has a remedy ends the process with its message."""
    from baton.errors import BatonError

    parser = service_arguments("The buffer: episodes of samples and the ledger of who trained what.")
    parser.add_argument("--store", metavar="URL", help="the Redis-protocol store; left out, the run file's store.url")
    arguments = parser.parse_args(argv)
    configure_logging("buffer")
    try:
        asyncio.run(serve(arguments))
    except BatonError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
