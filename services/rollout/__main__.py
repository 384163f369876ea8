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
    from baton.samples import GROUP_BYTES
    from services.common.http_server import HttpServer, listen
    from services.common.model_store import resolve_model
    from services.rollout.environment import prepare_environment
    from services.rollout.servicer import SERVICES, add_services

    run = load_run(options.run_file, options.set)
    policy = run.models.policy
    if policy.generator != "vllm":
        raise ConfigError(
            f"models.policy.generator is {policy.generator!r}: start `torchrun -m services.static_rollout`, or write vllm"
        )
    server = Server(SERVICES, options.listen, request_bytes=GROUP_BYTES)  # before the engine: a taken port is known at once
    host, _, port = options.openai_listen.rpartition(":")
    listener, openai_address = listen(host.strip("[]"), int(port), "services.openai_port")
    name = run.model_name("policy")
    directory = resolve_model(name, revision=policy.revision, trust_remote_code=policy.trust_remote_code)
    prepare_environment(policy)

    from services.rollout.engine import VllmEngine
    from services.rollout.openai_server import openai_app
    from services.rollout.recordings import Recordings
    from services.rollout.service import Replica

    lora = run.models.ppo_policy.lora
    engine = VllmEngine(policy, directory, run.engine_seed(options.replica), lora if lora.sends_adapter else None)
    logging.getLogger("vllm").setLevel(logging.WARNING)
    logging.disable(logging.NOTSET)  # vLLM's start may leave all messages below a warning switched off, ours too
    replica, recordings = Replica(engine, name, policy.max_outstanding_responses), Recordings(policy.max_recorded_tokens)
    add_services(server.grpc, replica, recordings, listener.getsockname()[1])
    try:
        await engine.prepare()
        http = HttpServer(await openai_app(engine, replica, recordings, policy), listener)
        serving = [asyncio.create_task(http.run_until_exit()), asyncio.create_task(server.run(options.ready_file))]
        logging.getLogger(__name__).info("serving OpenAI-compatible HTTP at http://%s/v1", openai_address)
        while not any(task.done() for task in serving):
            await asyncio.wait(serving, timeout=ENGINE_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            if engine.dead:
                raise SystemExit("the engine's process died (see above), so this one ends; start it again")
        http.should_exit = True
        await asyncio.gather(*serving)
    finally:
        engine.shutdown()


def main() -> None:
    """Command line."""
    parser = service_arguments("One rollout replica: vLLM behind gRPC.")
    http_help = "host:port of the OpenAI-compatible HTTP server; port 0 takes a free one"
    parser.add_argument("--openai-listen", default="127.0.0.1:0", help=http_help)
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
