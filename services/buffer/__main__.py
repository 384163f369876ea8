"""Starts the buffer service: `python -m services.buffer --run-file run.yaml`."""

import argparse
import asyncio
from collections.abc import Sequence

from services.common.server import Server, configure_logging, service_arguments

SERVICES = ("baton.api.buffer.v1.BufferService", "baton.api.buffer.v1.RelayService", "baton.api.buffer.v1.LedgerService")


async def serve(arguments: argparse.Namespace) -> None:
    """Serves until SIGTERM. Raises BatonError if the run file is wrong or the store is not there."""
    from baton.config import ConfigError, load_run  # imported late, so that --help answers at once
    from services.buffer.assembly import add_services
    from services.buffer.limits import Limits
    from services.buffer.store import Store

    run = load_run(arguments.run_file, arguments.set)
    url = arguments.store or run.store.url
    if url is None:
        raise ConfigError("store.url: not set, and this service starts no store; set it, or add --store redis://HOST:PORT")
    store = Store(url, retry_s=run.deadlines.store_s)
    await store.check()
    server = Server(SERVICES, arguments.listen)
    add_services(server.grpc, store, Limits.of(run.store))
    await server.run(arguments.ready_file)
    await store.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line and serves; an error that has a remedy ends the process with its message."""
    from baton.errors import BatonError
    from baton.memory import keep_freed_memory

    parser = service_arguments("The buffer: episodes of samples and the ledger of who trained what.")
    parser.add_argument("--store", metavar="URL", help="the Redis-protocol store; left out, the run file's store.url")
    arguments = parser.parse_args(argv)
    configure_logging("buffer")
    keep_freed_memory()
    try:
        asyncio.run(serve(arguments))
    except BatonError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
