"""`python -m services.coordinator --run-file RUN.yaml`: the coordinator's gRPC and HTTP servers in one process.

Reward workers import this file too when they start, so everything heavy is imported where it is used.
"""

import argparse
import asyncio
import os
from pathlib import Path

from baton.errors import ConfigError
from baton.memory import keep_freed_memory
from services.common.server import Server, configure_logging, end_with_parent, service_arguments, write_ready_file

SERVICE = "baton.api.coordinator.v1.CoordinatorService"

READY_S = 30.0
"""How long this process's own servers may take to answer it."""


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    parser = service_arguments("Drives one run: prompts, rollout, rewards, training, weights. Serves gRPC, and HTTP status.")
    parser.add_argument("--app", metavar="MODULE:ATTRIBUTE", help="the baton.engine.Engine with prompts, rewards or a flow")
    parser.add_argument("--buffer", metavar="HOST:PORT", help="the buffer; default services.buffer_address of the run file")
    parser.add_argument("--trainer", metavar="HOST:PORT", help="the trainer; default services.trainer_address")
    replica_help = "a rollout replica, repeatable; default services.rollout_addresses"
    parser.add_argument("--rollout", metavar="HOST:PORT", action="append", help=replica_help)
    group_help = "a trainer group of the run file, repeatable; default services.group_addresses"
    parser.add_argument("--trainer-group", metavar="NAME=HOST:PORT", action="append", type=_named_address, help=group_help)
    parser.add_argument("--output-dir", type=Path, help="the run's own folder; default runtime.output_dir/RUN_ID")
    arguments = parser.parse_args()
    configure_logging("coordinator")
    keep_freed_memory()
    end_with_parent()
    try:
        asyncio.run(_serve(arguments))
    except ConfigError as error:
        raise SystemExit(str(error)) from None


def _named_address(text: str) -> str:
    name, equals, address = text.partition("=")
    if not (name and equals and address):
        raise argparse.ArgumentTypeError(f"{text!r}: must be NAME=HOST:PORT")
    return text


async def _serve(arguments: argparse.Namespace) -> None:
    from baton.api.coordinator.v1.coordinator_pb2_grpc import add_CoordinatorServiceServicer_to_server
    from baton.config import load_run
    from baton.engine import Engine, load_engine
    from services.common.http_server import HttpServer, listen
    from services.coordinator.connections import addresses
    from services.coordinator.coordinator import Coordinator
    from services.coordinator.rest import build_app
    from services.coordinator.servicer import CoordinatorServicer

    config = load_run(arguments.run_file, arguments.set)
    engine = load_engine(arguments.app) if arguments.app else Engine()
    server = Server([SERVICE], arguments.listen)
    host = arguments.listen.rpartition(":")[0].strip("[]")
    listener, rest_address = listen(host, config.services.rest_port, "services.rest_port")
    coordinator = Coordinator(
        config,
        engine,
        addresses(config, arguments.buffer, arguments.trainer, arguments.rollout, arguments.trainer_group),
        output_dir=arguments.output_dir,
        dashboard_url=f"http://{rest_address}/",
    )
    add_CoordinatorServiceServicer_to_server(CoordinatorServicer(coordinator), server.grpc)
    http = HttpServer(build_app(coordinator), listener)

    async def close() -> None:
        await coordinator.close()
        http.should_exit = True

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(http.run_until_exit())
        tasks.create_task(server.run(on_stop=close))
        if arguments.ready_file:
            await _until_answering(server.address)
            facts = {"address": server.address, "rest_address": rest_address, "pid": os.getpid()}
            write_ready_file(arguments.ready_file, facts)


async def _until_answering(address: str) -> None:
    """Waits for this process's own gRPC server; HTTP answers before it, its socket being bound already."""
    import grpc

    async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(READY_S):
        await channel.channel_ready()


if __name__ == "__main__":
    main()
