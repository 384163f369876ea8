"""The learning rate's course over a run: constant, linear or cosine, after a warm-up."""

from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from baton.config.trainable import TrainableConfig


def schedule_of(optimizer: MegatronOptimizer, config: TrainableConfig, total_steps: int) -> OptimizerParamScheduler:
    """Sets the optimizer's rate at each `step(1)`; weight decay stays. A decay without a length of its own takes the run's
    `total_steps`."""
    decay = config.lr_decay_iters or total_steps
    return OptimizerParamScheduler(
        optimizer, init_lr=0.0, max_lr=config.lr, min_lr=config.min_lr, lr_warmup_steps=config.lr_warmup_iters,
        lr_decay_steps=max(decay, config.lr_warmup_iters + 1), lr_decay_style=config.lr_decay_style,
        start_wd=config.weight_decay, end_wd=config.weight_decay, wd_incr_steps=decay, wd_incr_style="constant",
    )  # fmt: skip
