"""One rank of a trainer group: `torchrun --nproc-per-node N -m services.trainer --run-file RUN.yaml [--group NAME]`.

Rank 0 serves gRPC.
"""

import asyncio
import os
import signal
from argparse import Namespace
from typing import TYPE_CHECKING

from baton.memory import keep_freed_memory
from services.common.server import Server, configure_logging, end_with_parent, service_arguments

if TYPE_CHECKING:
    from baton.config import RunConfig
    from baton.config.groups import TrainerGroup
    from services.trainer.ranks import Ranks
    from services.trainer.trainer import Trainer

SERVICES = [f"baton.api.trainer.v1.{name}" for name in ("TrainerService", "ScoringService", "LoopService")]


def start(options: Namespace) -> None:
    """Builds this rank's part of the group's models, then serves (rank 0) or follows (others)."""
    from baton.config import load_run
    from services.trainer.megatron.parallel import Layout

    run = load_run(options.run_file, options.set)
    group = chosen_group(run, options.group)
    layout = Layout.start(
        tensor=group.leader.tensor_model_parallel_size, pipeline=group.leader.pipeline_model_parallel_size,
        device=group.leader.device, timeout_s=run.deadlines.trainer_s, seed=run.runtime.seed,
    )  # fmt: skip

    import torch.distributed as dist

    from services.trainer.loop import Loop
    from services.trainer.models import Models
    from services.trainer.ranks import Ranks
    from services.trainer.scoring import Scoring
    from services.trainer.trainer import Trainer

    models = Models(run, group, layout)
    trainer = Trainer(run, models)
    handlers = trainer.handlers() | Scoring(models).handlers() | Loop(run, trainer).handlers()
    ranks = Ranks(handlers, run.deadlines.trainer_s)
    try:
        if layout.world_rank == 0:
            asyncio.run(serve(options, run, trainer, ranks))
        else:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides when the group ends
            ranks.follow()
    finally:
        trainer.saver.close()
        dist.destroy_process_group()


def chosen_group(run: "RunConfig", name: str) -> "TrainerGroup":
    """The group to be. Raises ConfigError for one that the run does not have, or has with another number of processes."""
    from baton.errors import ConfigError

    groups = run.trainer_groups()
    if name not in groups:
        raise ConfigError(f"--group {name}: the run file has no such group; its roles are in {', '.join(groups)}")
    group, world = groups[name], int(os.environ.get("WORLD_SIZE", "1"))
    if world != group.world_size:
        leading = next(iter(group.roles))
        raise ConfigError(
            f"torchrun started {world} processes, but models.{leading} asks for TP x PP x DP = {group.world_size}; "
            f"pass --nproc-per-node {group.world_size}"
        )
    return group


async def serve(options: Namespace, run: "RunConfig", trainer: "Trainer", ranks: "Ranks") -> None:
    """Rank 0: answers until SIGTERM, then lets the other ranks go."""
    from baton.api.trainer.v1.loop_pb2_grpc import add_LoopServiceServicer_to_server
    from baton.api.trainer.v1.scoring_pb2_grpc import add_ScoringServiceServicer_to_server
    from baton.api.trainer.v1.trainer_pb2_grpc import add_TrainerServiceServicer_to_server
    from services.trainer.loop_servicer import LoopServicer
    from services.trainer.scoring_servicer import ScoringServicer
    from services.trainer.servicer import TrainerServicer
    from services.trainer.texts import Texts

    server = Server(SERVICES, options.listen)
    models = trainer.models
    sources = {role: run.tokenizer_name(role) or models.by_role[role].source for role in models.group.roles}
    revisions = {role: run.tokenizer_revision(role) for role in models.group.roles}
    add_TrainerServiceServicer_to_server(TrainerServicer(run, trainer, ranks), server.grpc)
    add_ScoringServiceServicer_to_server(ScoringServicer(ranks, Texts(sources, revisions)), server.grpc)
    add_LoopServiceServicer_to_server(LoopServicer(models, ranks), server.grpc)
    heartbeat = asyncio.create_task(ranks.heartbeat())
    try:
        await server.run(options.ready_file)
    finally:
        heartbeat.cancel()
        await ranks.stop()


def main() -> None:
    """Command line."""
    parser = service_arguments("One rank of a trainer group: Megatron-Core behind gRPC.")
    parser.add_argument("--group", metavar="NAME", default="trainer", help="which group of the run file; default trainer")
    options = parser.parse_args()
    configure_logging(f"{options.group}-{os.environ.get('RANK', '0')}")
    keep_freed_memory()
    end_with_parent()  # torchrun gives its workers sessions of their own; they must not outlive it
    from baton.errors import ConfigError

    try:
        start(options)
    except ConfigError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
