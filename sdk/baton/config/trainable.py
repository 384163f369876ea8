"""`models.ppo_policy` and `models.ppo_value` (trained), `reference`, `value` and `reward` (forward only)."""

from typing import Annotated, Any, Literal

from pydantic import Field

from baton.config.base import Count, NonNegativeFloat, PositiveFloat, PositiveInt, matching
from baton.config.roles import RoleConfig

AdamBeta = Annotated[float, Field(ge=0, lt=1)]
MAIN_GROUP = "trainer"
"""The trainer group that trains; it always exists."""
GroupName = Annotated[
    str, matching(r"[a-z][a-z0-9_-]*", "must be small letters, digits, '-' and '_', a letter first", "write it like scorers")
]


def _data_parallel(data: dict[str, Any]) -> int:
    if not data["num_gpu"]:
        return 1
    return max(1, data["num_gpu"] // (data["tensor_model_parallel_size"] * data["pipeline_model_parallel_size"]))


class TrainableConfig(RoleConfig):
    """A model that is trained by Megatron-Core, and its optimizer. It has one replica; copies share its
    batches."""

    trainable: Literal[True] = True
    """Always true for this role."""

    group: Literal["trainer"] = MAIN_GROUP
    """The torchrun group whose processes hold the model. What is trained is in the group `trainer`: one step trains all
    of it on the same samples."""

    num_replica: Literal[1] = 1
    """Always 1: `data_parallel_size` says how many copies share a batch."""

    data_parallel_size: PositiveInt = Field(default_factory=_data_parallel)
    """Copies of the model that share each batch. Left out: what `num_gpu` allows, else 1."""

    lr: PositiveFloat = 1e-6
    """Learning rate after the warm-up."""

    min_lr: NonNegativeFloat = 0.0
    """Learning rate at the end of the decay, and its lower limit."""

    lr_decay_style: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate from `lr` to `min_lr`. `constant`: it stays at `lr`."""

    lr_warmup_iters: Count = 0
    """Optimizer steps in which the learning rate rises from 0 to `lr`."""

    lr_decay_iters: PositiveInt | None = None
    """Optimizer steps until `min_lr` is reached, the warm-up included. null: all of the run's."""

    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay. 0: none."""

    adam_beta1: AdamBeta = 0.9
    """Decay of Adam's running mean of the gradient."""

    adam_beta2: AdamBeta = 0.999
    """Decay of Adam's running mean of the squared gradient."""

    adam_eps: PositiveFloat = 1e-8
    """Term that keeps Adam's denominator above zero."""

    clip_grad: NonNegativeFloat = 1.0
    """Upper limit on the gradient's global norm. 0: no limit."""

    max_skipped_steps: Count = 2
    """How many steps in a row may have a gradient that is not finite. Such a step leaves the weights as they are
    and is reported as `skipped`; one more ends the run."""

    use_distributed_optimizer: bool = False
    """Divide the optimizer's state over the data-parallel copies."""

    recompute_granularity: Literal["selective", "full"] | None = None
    """Activations that the backward pass computes again instead of keeping. `full`: a layer's, all but its input.
    `selective`: those of each layer's feed-forward part. null: none."""

    recompute_num_layers: PositiveInt | None = None
    """With `full`: how many layers of each pipeline stage are computed again, the first ones. null: all."""

    sequence_parallel: bool = False
    """Divide the parts between tensor-parallel layers along the sequence."""

    share_prefix: bool = True
    """Compute the prompt that a group's samples have in common once."""

    pad_samples: bool = False
    """Lengthen every sample of a micro-batch to the longest instead of laying them end to end. The result is the same, and
    the padding is computed too; no prompt is shared then. In a step, that of ppo_policy holds for ppo_value as well."""

    @property
    def world_size(self) -> int:
        """Processes of the trainer: tensor x pipeline x data-parallel size."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.data_parallel_size


class ForwardConfig(RoleConfig):
    """A model that is only evaluated: `reference`, `value` or `reward`."""

    trainable: Literal[False] = False
    """Always false for this role."""

    group: GroupName = MAIN_GROUP
    """The torchrun group whose processes hold the model. Roles of one group share its processes, parallel sizes and device:
    what one leaves out is as for the group's first role, `ppo_policy` before the others. A group of another name than
    `trainer` is started for it, or found at its address in `services.group_addresses`."""

    share_prefix: bool = True
    """Compute the prompt that a group's samples have in common once."""

    @property
    def world_size(self) -> int:
        """Processes of the model over all its replicas."""
        return self.gpus_per_replica * self.num_replica
