"""One rank of a rollout replica on static batches (`models.policy.generator: megatron`). Rank 0 serves gRPC.

torchrun --nproc-per-node N -m services.static_rollout --run-file RUN.yaml
"""

import asyncio
import os
import signal
from argparse import Namespace
from typing import TYPE_CHECKING

from services.common.server import Server, configure_logging, end_with_parent, service_arguments

if TYPE_CHECKING:
    from baton.config.policy import PolicyConfig


def start(options: Namespace) -> None:
    """Builds this rank's part of the model, then serves (rank 0) or follows (others)."""
    from baton.config import load_run
    from baton.errors import ConfigError
    from services.common.model_facts import directory_facts
    from services.common.model_store import resolve_model
    from services.common.tokenizers import load_tokenizer
    from services.rollout.stop_texts import StopTexts
    from services.static_rollout.tokens import end_tokens
    from services.trainer.megatron.parallel import Layout

    run = load_run(options.run_file, options.set)
    config, name = run.models.policy, run.model_name("policy")
    _check_start(config)
    directory = resolve_model(name, revision=config.revision, trust_remote_code=config.trust_remote_code)
    tokenizer = load_tokenizer(config.tokenizer or directory, trust_remote_code=config.trust_remote_code)
    facts = directory_facts(directory, tokenizer)
    stop_ids = StopTexts(tokenizer).option_ids(config.stop_tokens)
    longest = max(run.deadlines.generate_s, run.deadlines.publish_s)
    layout = Layout.start(
        tensor=config.tensor_model_parallel_size, pipeline=config.pipeline_model_parallel_size,
        device=config.device, timeout_s=longest, seed=run.engine_seed(options.replica),
    )  # fmt: skip

    import torch
    import torch.distributed as dist

    from services.static_rollout.generator import StaticGenerator
    from services.static_rollout.worker import Worker
    from services.trainer.megatron.stage import CachedStage, load_policy
    from services.trainer.ranks import Ranks

    policy = load_policy(directory, layout, getattr(torch, config.dtype))
    if config.seq_length > policy.shape.max_positions:
        raise ConfigError(
            f"models.policy.seq_length: got {config.seq_length}; the model has {policy.shape.max_positions} positions; "
            "lower it to that"
        )
    generator = StaticGenerator(
        CachedStage(policy, layout), end_tokens(directory, tokenizer),
        lambda ids: tokenizer.decode(ids, skip_special_tokens=True), config.batch_generation.min_prompt_length,
    )  # fmt: skip
    ranks = Ranks(Worker(generator).handlers(), longest)
    try:
        if layout.world_rank == 0:
            from services.rollout.service import Replica
            from services.static_rollout.engine import StaticEngine

            engine = StaticEngine(
                config, ranks, tokenizer, policy.shape.vocab_size, run.engine_seed(options.replica), stop_ids, facts
            )
            asyncio.run(serve(options, engine, ranks, Replica(engine, name, config.max_outstanding_responses)))
        else:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides when the group ends
            ranks.follow()
    finally:
        dist.destroy_process_group()


def _check_start(config: "PolicyConfig") -> None:
    """Raises ConfigError for another generator's section, and for another number of processes than it asks for."""
    from baton.errors import ConfigError

    if config.generator != "megatron":
        raise ConfigError(
            f"models.policy.generator is {config.generator!r}: start `python -m services.rollout`, or write megatron"
        )
    size = config.tensor_model_parallel_size * config.pipeline_model_parallel_size
    if (world := int(os.environ.get("WORLD_SIZE", "1"))) != size:
        raise ConfigError(
            f"torchrun started {world} processes, but models.policy asks for TP x PP = {size}; pass --nproc-per-node {size}"
        )


async def serve(options: Namespace, engine: object, ranks: object, replica: object) -> None:
    """Rank 0: answers until SIGTERM, then lets the other ranks go."""
    from baton.samples import GROUP_BYTES
    from services.rollout.servicer import SERVICES, add_services

    server = Server(SERVICES, options.listen, request_bytes=GROUP_BYTES)
    await engine.prepare()
    add_services(server.grpc, replica)
    tasks = [asyncio.create_task(engine.run()), asyncio.create_task(ranks.heartbeat())]
    try:
        await server.run(options.ready_file)
    finally:
        for task in tasks:
            task.cancel()
        await ranks.stop()


def main() -> None:
    """Command line."""
    parser = service_arguments("One rank of a rollout replica: static batches on Megatron-Core behind gRPC.")
    parser.add_argument("--replica", type=int, default=0, help="number of this replica, from 0")
    options = parser.parse_args()
    configure_logging(f"rollout-{options.replica}-{os.environ.get('RANK', '0')}")
    end_with_parent()  # torchrun gives its workers sessions of their own; they must not outlive it
    from baton.errors import ConfigError

    try:
        start(options)
    except ConfigError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
