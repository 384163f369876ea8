"""One rank's model in training: gradients accumulated over micro-batches, optimizer and schedule."""

import logging
import math
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

from baton.config.trainable import TrainableConfig
from baton.errors import ConfigError, InvalidRequestError
from services.trainer.megatron.heads import Head
from services.trainer.megatron.hosted import HostedModel, LossFunction
from services.trainer.megatron.lora.base import base_fingerprint
from services.trainer.megatron.lora.convert import convert_layer_to_lora, require_adapters
from services.trainer.megatron.lora.peft_files import load_adapter
from services.trainer.megatron.lora.saved import (
    adapter_state,
    begin_anew,
    lora_facts,
    merged_state,
    restore_merged,
)
from services.trainer.megatron.multi_tensor import use_lists
from services.trainer.megatron.parallel import Layout
from services.trainer.megatron.schedule import schedule_of
from services.trainer.packing import PackedBatch

log = logging.getLogger(__name__)

class Update(NamedTuple):
    """What became of a step: its gradient's norm before clipping, the learning rate, and whether it was skipped."""

    grad_norm: float
    learning_rate: float
    skipped: bool


class Engine(HostedModel):
    """Holds what one rank trains. Every method is a collective: all ranks call it in the same order."""

    def __init__(
        self, config: TrainableConfig, layout: Layout, directory: Path, total_steps: int, *,
        role: str = "ppo_policy", head: Head = "logprobs", seed: int = 0, load: Path | None = None,
        share: HostedModel | None = None,
    ) -> None:  # fmt: skip
        """`total_steps` is the length of a decaying learning-rate schedule; the rest is HostedModel's. With `config.lora`
        only adapters are trained; raises ConfigError for options of it that do not fit the model."""
        super().__init__(
            config, layout, directory, head=head, seed=seed, role=role, load=load, share=share,
            sequence_parallel=config.sequence_parallel, **_recompute(config),
        )  # fmt: skip
        self.lineage = uuid.uuid4().hex
        """Names this training in its checkpoints; that of a checkpoint which is loaded goes on."""
        self.pad_samples = config.pad_samples
        self.lora, self._seed = config.lora, seed
        self.base = ""
        """Fingerprint of the base model's weights, of a model with adapters."""
        self.rebased = False
        """Whether a merged checkpoint has replaced those weights since; then the adapters are of no model with a name."""
        if config.lora.enable_lora:
            self._add_adapters(directory)
        use_lists()
        core, dtype = self.policy.config, getattr(torch, config.dtype)
        ddp = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True, use_distributed_optimizer=config.use_distributed_optimizer
        )
        self.model = DistributedDataParallel(core, ddp, self.policy)
        self.optimizer = get_megatron_optimizer(_optimizer_config(config, dtype), [self.model])
        for group in self.optimizer.param_groups:
            group["fused"] = True  # one pass over memory instead of one for every operation
        core.grad_scale_func = self.optimizer.scale_loss
        self._accumulated = False
        self._max_skipped = config.max_skipped_steps
        self.skipped_steps = 0
        """In a row, up to now."""
        self.schedule = schedule_of(self.optimizer, config, total_steps)

    def _add_adapters(self, directory: Path) -> None:
        if self.load is not None:
            raise ConfigError(
                f"models.{self.role}.load: {self.load} is not taken by a model that trains adapters (lora); write it as a "
                f"Hugging Face directory (baton ckpt export-hf) and name that by models.{self.role}.model"
            )
        self.base, self.adapted = base_fingerprint(directory), True
        option = f"models.{self.role}.lora"
        convert_layer_to_lora(self.policy, config=self.lora, seed=self._seed)
        require_adapters(self.policy, self.lora, option)
        if self.lora.load:
            start = Path(self.lora.load).expanduser()
            load_adapter(self.policy, start, self.lora, directory, self.base, f"{option}.load")

    @property
    def saves_optimizer(self) -> bool:
        """Whether a checkpoint also holds the optimizer's state; that of adapters is of no use without them."""
        return not (self.lora.enable_lora and self.lora.checkpoint == "merged")

    def saved_weights(self) -> dict[str, Any]:
        """What a checkpoint holds of the model, as Megatron's sharded state: all weights; with LoRA the adapters alone, or
        all weights with the adapters added, as `lora.checkpoint` says."""
        if not self.lora.enable_lora:
            return super().saved_weights()
        return adapter_state(self.policy) if self.saves_optimizer else merged_state(self.policy)

    def adapter_facts(self) -> dict[str, Any]:
        """What a checkpoint says of the adapters, to compare with another run's; {} without them."""
        return lora_facts(self.lora, self.base)

    def restored(self, weights: Mapping[str, Any]) -> None:
        """What was read into `saved_weights` holds from now on. Merged weights are the model's own then, and the adapters
        begin anew; all others were read to where they belong."""
        if not self.saves_optimizer:
            restore_merged(self.policy, weights, self._seed)
            self.rebased = True
            begin_anew(self.optimizer)

    def forward_backward(self, batches: Sequence[PackedBatch], loss: LossFunction) -> list[Any]:
        """Runs the pipeline over all micro-batches and adds the gradient of the sum of their losses to what there is.

        Returns what `loss` reported for each micro-batch on the last stage, an empty list elsewhere.
        """
        # Megatron averages over micro-batches and data-parallel ranks; our losses carry their own, global, normaliser.
        undo = len(batches) * self.layout.data_size

        def undone(index: int, output: Any) -> tuple[torch.Tensor, Any]:
            value, report = loss(index, output)
            return value * undo, report

        self._accumulated = True
        return self._run(batches, undone, forward_only=False) if batches else []

    @property
    def has_gradients(self) -> bool:
        """Whether gradients were accumulated since the last update."""
        return self._accumulated

    def clear(self) -> None:
        """Forgets the gradients accumulated so far."""
        if self._accumulated:
            self.model.zero_grad_buffer()
            self.optimizer.zero_grad()
        self._accumulated = False

    def sum_over_data_parallel(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of every data-parallel rank's tensor, on the CPU."""
        total = values.to(self.layout.device, copy=True)
        dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
        return total.cpu()

    def step(self, learning_rate: float | None = None, weight_decay: float | None = None) -> Update:
        """`finish`, then `apply`."""
        return self.apply(self.finish(), learning_rate, weight_decay)

    def finish(self) -> float:
        """Adds up the accumulated gradients of all ranks. Returns their norm.

        Raises InvalidRequestError, on all ranks, if too many steps in a row had one that is not finite.
        """
        finalize_model_grads([self.model])
        self.optimizer.prepare_grads()
        norm = float(self.optimizer.get_grad_norm())
        if not math.isfinite(norm) and self.skipped_steps >= self._max_skipped:
            self.clear()
            before = f", as in the {self.skipped_steps} steps before" if self.skipped_steps else ""
            raise InvalidRequestError(
                f"the gradient norm of this step is {norm}{before}, and models.{self.role}.max_skipped_steps is "
                f"{self._max_skipped}; the weights are unchanged. Look for rewards or rollout log-probabilities that are "
                f"infinite or huge, and at the metrics of the last steps for a growing norm; a lower models.{self.role}.lr "
                "or clip_grad helps against that"
            )
        return norm

    def apply(self, norm: float, learning_rate: float | None = None, weight_decay: float | None = None) -> Update:
        """Updates the weights with the finished gradients, whose norm is `norm`, and clears them; or skips a step whose
        gradient is not finite. None: as the run file says."""
        self.schedule.step(1)  # before the update, so that a warm-up's first step does not have a rate of zero
        for group in self.optimizer.param_groups:
            if learning_rate is not None:
                group["lr"] = learning_rate
            if weight_decay is not None:
                group["weight_decay"] = weight_decay * group.get("wd_mult", 1.0)
        finite = math.isfinite(norm)
        if finite:
            for optimizer in self.optimizer.chained_optimizers:  # its own `step` would compute the norm a second time
                clip_grad_by_total_norm_fp32(optimizer.get_parameters(), optimizer.config.clip_grad, norm)
            self.optimizer.step_with_ready_grads()
        else:
            log.warning(
                "the gradient norm of %s is %s: the step is skipped, and the weights are unchanged", self.role, norm
            )
        self.skipped_steps = 0 if finite else self.skipped_steps + 1
        self.clear()
        groups = self.optimizer.param_groups  # none on a stage that trains nothing
        return Update(norm, groups[0]["lr"] if groups else learning_rate or self.schedule.get_lr({}), not finite)


def _recompute(config: TrainableConfig) -> dict[str, Any]:
    """Megatron's options for what the backward pass computes again."""
    if config.recompute_granularity == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["mlp"]}
    if config.recompute_granularity == "full":
        first = config.recompute_num_layers
        method = {"recompute_method": "block" if first else "uniform", "recompute_num_layers": first or 1}
        return {"recompute_granularity": "full"} | method
    return {}


def _optimizer_config(config: TrainableConfig, dtype: torch.dtype) -> OptimizerConfig:
    return OptimizerConfig(
        optimizer="adam", lr=config.lr, min_lr=config.min_lr, weight_decay=config.weight_decay,
        adam_beta1=config.adam_beta1, adam_beta2=config.adam_beta2, adam_eps=config.adam_eps, 
        clip_grad=config.clip_grad or math.inf,  # at 0 Megatron would not even compute the norm
        bf16=dtype is torch.bfloat16, params_dtype=dtype, use_distributed_optimizer=config.use_distributed_optimizer,
    )  # fmt: skip
