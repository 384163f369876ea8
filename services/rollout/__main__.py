"""Starts one rollout replica: `python -m services.rollout --run-file RUN.yaml`."""

import asyncio
import logging
from argparse import Namespace

from services.common.server import Server, configure_logging, service_arguments

ENGINE_LOOK_S = 0.5
"""Between two looks at the engine, without which the service is of no use."""


async def serve(options: Namespace) -> None:
    """Loads the engine, then answers until SIGTERM."""
    from baton.config import load_run
    from baton.errors import ConfigError
    from services.common.model_store import resolve_model
    from services.rollout.environment import prepare_environment
    from services.rollout.servicer import SERVICES, add_services

    run = load_run(options.run_file, options.set)
    policy = run.models.policy
    if policy.generator != "vllm":
        raise ConfigError(
            f"models.policy.generator is {policy.generator!r}: start `torchrun -m services.static_rollout`, or write vllm"
        )
    server = Server(SERVICES, options.listen)  # before the engine: a taken port is known at once
    name = run.model_name("policy")
    directory = resolve_model(name)
    prepare_environment(policy)

    from services.rollout.engine import VllmEngine
    from services.rollout.service import Replica

    engine = VllmEngine(policy, directory, run.engine_seed(options.replica))
    logging.getLogger("vllm").setLevel(logging.WARNING)
    add_services(server.grpc, Replica(engine, name, policy.max_outstanding_responses))
    serving = asyncio.create_task(server.run(options.ready_file))
    try:
        while not serving.done():
            await asyncio.wait([serving], timeout=ENGINE_LOOK_S)
            if engine.dead and not serving.done():
                raise SystemExit("the engine's process died (see above), so this one ends; start it again")
        await serving
    finally:
        engine.shutdown()


def main() -> None:
    """Command line."""
    parser = service_arguments("One rollout replica: vLLM behind gRPC.")
    parser.add_argument("--replica", type=int, default=0, help="number of this replica, from 0")
    options = parser.parse_args()
    configure_logging(f"rollout-{options.replica}")
    from baton.errors import ConfigError

    try:
        asyncio.run(serve(options))
    except ConfigError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
