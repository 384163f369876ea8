"""One rank of the trainer: `torchrun --nproc-per-node N -m services.trainer --run-file RUN.yaml`. Rank 0 serves gRPC."""

import asyncio
import os
import signal
from argparse import Namespace

from services.common.server import Server, configure_logging, end_with_parent, service_arguments

SERVICES = ["baton.api.trainer.v1.TrainerService", "baton.api.trainer.v1.ScoringService"]


def start(options: Namespace) -> None:
    """Builds this rank's part of the model, then serves (rank 0) or follows (others)."""
    from baton.config import load_run
    from baton.errors import ConfigError
    from services.common.model_store import resolve_model
    from services.trainer.megatron.parallel import Layout

    run = load_run(options.run_file, options.set)
    config, model = run.models.ppo_policy, run.model_name("ppo_policy")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != config.world_size:
        raise ConfigError(
            f"torchrun started {world} processes, but models.ppo_policy asks for TP x PP x DP = {config.world_size}; "
            f"pass --nproc-per-node {config.world_size}"
        )
    directory = resolve_model(model)
    longest = max(run.deadlines.train_step_s, run.deadlines.checkpoint_s, run.deadlines.generate_s)
    layout = Layout.start(
        tensor=config.tensor_model_parallel_size, pipeline=config.pipeline_model_parallel_size,
        device=config.device, timeout_s=longest, seed=run.runtime.seed,
    )  # fmt: skip

    import torch.distributed as dist

    from services.trainer.megatron.engine import Engine
    from services.trainer.ranks import Ranks
    from services.trainer.trainer import Trainer

    engine = Engine(config, layout, directory, run.optimizer_steps)
    trainer = Trainer(run, engine, directory)
    ranks = Ranks(trainer.handlers(), longest)
    try:
        if layout.world_rank == 0:
            asyncio.run(serve(options, trainer, ranks, model))
        else:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides when the group ends
            ranks.follow()
    finally:
        dist.destroy_process_group()


async def serve(options: Namespace, trainer: object, ranks: object, model: str) -> None:
    """Rank 0: answers until SIGTERM, then lets the other ranks go."""
    from baton.api.trainer.v1.scoring_pb2_grpc import add_ScoringServiceServicer_to_server
    from baton.api.trainer.v1.trainer_pb2_grpc import add_TrainerServiceServicer_to_server
    from services.trainer.scoring_servicer import ScoringServicer
    from services.trainer.servicer import TrainerServicer

    server = Server(SERVICES, options.listen)
    servicer = TrainerServicer(trainer, ranks, model, trainer.engine.parameter_count())
    add_TrainerServiceServicer_to_server(servicer, server.grpc)
    add_ScoringServiceServicer_to_server(ScoringServicer(ranks), server.grpc)
    heartbeat = asyncio.create_task(ranks.heartbeat())
    try:
        await server.run(options.ready_file)
    finally:
        heartbeat.cancel()
        await ranks.stop()


def main() -> None:
    """Command line."""
    options = service_arguments("One rank of the trainer: Megatron-Core behind gRPC.").parse_args()
    configure_logging(f"trainer-{os.environ.get('RANK', '0')}")
    end_with_parent()  # torchrun gives its workers sessions of their own; they must not outlive it
    from baton.errors import ConfigError

    try:
        start(options)
    except ConfigError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
