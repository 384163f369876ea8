"""One rank's model, optimizer and schedule, and the forward-backward over micro-batches on Megatron's pipeline."""

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.pipeline_parallel import get_forward_backward_func

from baton.config.trainable import TrainableConfig
from baton.errors import InvalidRequestError
from services.trainer.megatron.family import ModelShape
from services.trainer.megatron.fusion import can_fuse
from services.trainer.megatron.hf import load_hf
from services.trainer.megatron.model import PolicyModel, TokenScores, transformer_config
from services.trainer.megatron.parallel import Layout
from services.trainer.packing import PackedBatch

log = logging.getLogger(__name__)

LossFunction = Callable[[int, TokenScores], tuple[torch.Tensor, dict[str, torch.Tensor]]]
"""(micro-batch index, its scores) -> (loss, sums to report); called on the last pipeline stage only."""


class Update(NamedTuple):
    """What became of a step: its gradient's norm before clipping, the learning rate, and whether it was skipped."""

    grad_norm: float
    learning_rate: float
    skipped: bool


class Engine:
    """Holds what one rank trains. Every method is a collective: all ranks call it in the same order."""

    def __init__(self, config: TrainableConfig, layout: Layout, directory: Path, total_steps: int) -> None:
        """Loads a Hugging Face directory. `total_steps` is the length of a decaying learning-rate schedule."""
        self.layout = layout
        self.shape = ModelShape.read(directory)
        self.shape.check_parallelism(layout.tensor_size, layout.pipeline_size)
        dtype = getattr(torch, config.dtype)
        core = transformer_config(
            self.shape, tensor=layout.tensor_size, pipeline=layout.pipeline_size, dtype=dtype,
            sequence_parallel=config.sequence_parallel, finalize_model_grads_func=finalize_model_grads,
            **_recompute(config), fuse=layout.device.type == "cuda" and can_fuse(),
        )  # fmt: skip
        self.policy = PolicyModel(core, self.shape).to(layout.device, dtype)
        self.policy.inverse_frequencies = self.policy.inverse_frequencies.float()  # positions beyond 256 need more than bf16
        load_hf(self.policy, directory, layout)
        ddp = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True, use_distributed_optimizer=config.use_distributed_optimizer
        )
        self.model = DistributedDataParallel(core, ddp, self.policy)
        self.optimizer = get_megatron_optimizer(_optimizer_config(config, dtype), [self.model])
        for group in self.optimizer.param_groups:
            group["fused"] = True  # one pass over memory instead of one for every operation
        core.grad_scale_func = self.optimizer.scale_loss
        self._max_skipped, self._skipped = config.max_skipped_steps, 0
        decay = config.lr_decay_iters or total_steps
        self.schedule = OptimizerParamScheduler(
            self.optimizer, init_lr=0.0, max_lr=config.lr, min_lr=config.min_lr, lr_warmup_steps=config.lr_warmup_iters,
            lr_decay_steps=max(decay, config.lr_warmup_iters + 1), lr_decay_style=config.lr_decay_style,
            start_wd=config.weight_decay, end_wd=config.weight_decay, wd_incr_steps=decay, wd_incr_style="constant",
        )  # fmt: skip

    def parameter_count(self) -> int:
        """Parameters on this rank."""
        return sum(parameter.numel() for parameter in self.policy.parameters())

    def forward_backward(
        self, batches: Sequence[PackedBatch], loss: LossFunction, *, forward_only: bool = False
    ) -> list[Any]:
        """Runs the pipeline over all micro-batches and accumulates gradients of the sum of their losses.

        Returns what `loss` reported for each micro-batch on the last stage, an empty list elsewhere.
        """
        count = len(batches)
        # Megatron averages over micro-batches and data-parallel ranks; our losses carry their own, global, normaliser.
        undo = count * self.layout.data_size

        def forward_step(iterator: Any, model: torch.nn.Module) -> tuple[Any, Callable]:
            index, batch = next(iterator)

            def reduce(scores: TokenScores) -> tuple[torch.Tensor, Any]:
                value, report = loss(index, scores)
                return value * undo, report

            return model(batch), reduce

        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        run = get_forward_backward_func()
        return run(
            forward_step_func=forward_step,
            data_iterator=enumerate(batch.to(self.layout.device) for batch in batches),
            model=[self.model],
            num_microbatches=count,
            seq_length=1,  # unused: the stages tell each other the length of every row
            micro_batch_size=1,
            forward_only=forward_only,
        )

    def score(self, batches: Sequence[PackedBatch]) -> list[torch.Tensor]:
        """Log-probabilities [N] per micro-batch on the last stage, without gradients; an empty list elsewhere."""
        self.model.eval()
        with torch.no_grad():
            answer = self.forward_backward(
                batches, lambda _, scores: (scores.logprobs_N.sum(), scores.logprobs_N), forward_only=True
            )
        self.model.train()
        return answer

    def sum_over_data_parallel(self, value: float) -> float:
        """The sum of every data-parallel rank's value."""
        total = torch.tensor([value], dtype=torch.float64, device=self.layout.device)
        dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
        return float(total)

    def step(self) -> Update:
        """Updates the weights with the accumulated gradients, or skips a step whose gradient is not finite.

        Raises InvalidRequestError, on all ranks and with the weights unchanged, if too many steps in a row had such a one.
        """
        self.optimizer.prepare_grads()
        norm = float(self.optimizer.get_grad_norm())
        finite = math.isfinite(norm)
        if not finite and self._skipped >= self._max_skipped:
            before = f", as in the {self._skipped} steps before" if self._skipped else ""
            raise InvalidRequestError(
                f"the gradient norm of this step is {norm}{before}, and models.ppo_policy.max_skipped_steps is "
                f"{self._max_skipped}; the weights are unchanged. Look for rewards or rollout log-probabilities that are "
                "infinite or huge, and at the metrics of the last steps for a growing norm; a lower models.ppo_policy.lr or "
                "clip_grad helps against that"
            )
        self.schedule.step(1)  # before the update, so that a warm-up's first step does not have a rate of zero
        if finite:
            self.optimizer.step()
        else:
            log.warning("the gradient norm of this step is %s: it is skipped, and the weights are unchanged", norm)
        self._skipped = 0 if finite else self._skipped + 1
        return Update(norm, self.optimizer.param_groups[0]["lr"], not finite)


def _recompute(config: TrainableConfig) -> dict[str, Any]:
    if config.recompute_granularity == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return {}


def _optimizer_config(config: TrainableConfig, dtype: torch.dtype) -> OptimizerConfig:
    return OptimizerConfig(
        optimizer="adam", lr=config.lr, min_lr=config.min_lr, weight_decay=config.weight_decay,
        adam_beta1=config.adam_beta1, adam_beta2=config.adam_beta2, adam_eps=config.adam_eps, 
        clip_grad=config.clip_grad or math.inf,  # at 0 Megatron would not even compute the norm
        bf16=dtype is torch.bfloat16, params_dtype=dtype, use_distributed_optimizer=config.use_distributed_optimizer,
    )  # fmt: skip
