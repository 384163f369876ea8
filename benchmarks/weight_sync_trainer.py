"""One rank of a trainer service that holds weights only, for models whose optimizer does not fit a card beside them.

    torchrun ... benchmarks/weight_sync_trainer.py, with the arguments of `services.trainer`

Model, sender and RPCs are the service's own. There are no gradients and no optimizer: OptimStep adds noise to the weights.
"""

import asyncio
import os

import torch
import torch.distributed as dist

from baton.api.trainer.v1 import loop_pb2
from baton.config import RunConfig, load_run
from baton.config.groups import TrainerGroup
from services.common.model_store import resolve_model
from services.common.server import configure_logging, end_with_parent, service_arguments
from services.trainer.__main__ import chosen_group, serve
from services.trainer.megatron.parallel import Layout

NOISE = 0.05
"""Standard deviation of what a step adds to a weight, as a share of it."""


def main() -> None:
    """Command line: that of `services.trainer`, without groups."""
    options = service_arguments(__doc__.partition("\n")[0]).parse_args()
    configure_logging(f"weights-{os.environ.get('RANK', '0')}")
    end_with_parent()
    run = load_run(options.run_file, options.set)
    group = chosen_group(run, "trainer")
    layout = Layout.start(
        tensor=group.leader.tensor_model_parallel_size, pipeline=group.leader.pipeline_model_parallel_size,
        device=group.leader.device, timeout_s=run.deadlines.trainer_s, seed=run.runtime.seed,
    )  # fmt: skip
    from services.trainer.megatron.hosted import HostedModel
    from services.trainer.models import Models
    from services.trainer.ranks import Ranks
    from services.trainer.trainer import Trainer

    class Weights(Models):
        """The policy alone, without what training needs."""

        def __init__(self, run: RunConfig, group: TrainerGroup, layout: Layout) -> None:
            self.group, self.layout, self._known = group, layout, tuple(run.models.roles())
            self.by_role = {
                "ppo_policy": HostedModel(run.models.ppo_policy, layout, resolve_model(run.model_name("ppo_policy")))
            }

        @property
        def trained(self) -> dict[str, HostedModel]:
            """What is published."""
            return {"ppo_policy": self.by_role["ppo_policy"]}

    models = Weights(run, group, layout)
    trainer = Trainer(run, models)

    @torch.no_grad()
    def step(_: bytes) -> bytes:
        for parameter in models.trained["ppo_policy"].policy.parameters():
            parameter.mul_(torch.randn_like(parameter).mul_(NOISE).add_(1))
        trainer.global_step += 1
        return loop_pb2.OptimStepResponse(global_step=trainer.global_step).SerializeToString()

    ranks = Ranks(trainer.handlers() | {"OptimStep": step}, run.deadlines.trainer_s)
    try:
        if layout.world_rank == 0:
            asyncio.run(serve(options, run, trainer, ranks))
        else:
            ranks.follow()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
