"""One rank's part of one model, evaluated only; `engine.py` adds what training needs."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

from baton.config.trainable import ForwardConfig, TrainableConfig
from baton.errors import ConfigError, InvalidRequestError, NotFoundError
from services.trainer.megatron.checkpoint import load_checkpoint
from services.trainer.megatron.family import ModelShape
from services.trainer.megatron.fusion import can_fuse
from services.trainer.megatron.heads import SCORE, Head, ScalarModel, fresh_head
from services.trainer.megatron.hf import load_hf
from services.trainer.megatron.model import PolicyModel, TokenScores, transformer_config
from services.trainer.megatron.parallel import Layout
from services.trainer.packing import PackedBatch, padded

Output = TokenScores | torch.Tensor
"""What a model's head returns for a micro-batch."""
LossFunction = Callable[[int, Any], tuple[torch.Tensor, Any]]
"""(micro-batch index, its Output) -> (loss, what to report); called on the last pipeline stage only."""


class HostedModel:
    """Holds one model without gradients. Every method is a collective: all ranks call it in the same order."""

    def __init__(
        self, config: TrainableConfig | ForwardConfig, layout: Layout, directory: Path, *, head: Head = "logprobs",
        seed: int = 0, role: str = "ppo_policy", load: Path | None = None, share: "HostedModel | None" = None,
        **options: Any,
    ) -> None:  # fmt: skip
        """Makes the model of a Hugging Face directory, with the weights that are there, or else in `load`: a checkpoint, or
        another such directory. A scalar head that it lacks is made from `seed`. `role` is the model's name in messages and
        checkpoints. `share`: a model of the same weights and dtype whose frozen ones are also this one's. `options` are
        Megatron's."""
        self.layout, self.head, self.role, self.load = layout, head, role, load
        self.source, self.share_prefix = directory, config.share_prefix
        self.shape = ModelShape.read(directory)
        self.shape.check_parallelism(layout.tensor_size, layout.pipeline_size)
        dtype = getattr(torch, config.dtype)
        core = transformer_config(
            self.shape, tensor=layout.tensor_size, pipeline=layout.pipeline_size, dtype=dtype,
            fuse=layout.device.type == "cuda" and can_fuse(), empty=share is not None, **options,
        )  # fmt: skip
        module = PolicyModel(core, self.shape) if head == "logprobs" else ScalarModel(core, self.shape, head)
        shared = _share(module, share.policy) if share else ()
        self.policy = module.to(layout.device, dtype)
        self._start_weights(load or directory, seed, adaptive=config.adaptive_parallel_strategy_on_checkpoint, skip=shared)
        self.model: torch.nn.Module = self.policy

    def _start_weights(self, origin: Path, seed: int, *, adaptive: bool, skip: Collection[str]) -> None:
        """Raises ConfigError if `models.<role>.load` names neither a checkpoint nor a directory of the same model."""
        if not (origin / "config.json").is_file() and origin != self.source:
            try:
                load_checkpoint(self, None, None, adaptive_parallel_strategy=adaptive)
            except (NotFoundError, InvalidRequestError) as error:
                raise ConfigError(f"models.{self.role}.load: {error}") from error
            return
        if (found := ModelShape.read(origin)) != self.shape:
            raise ConfigError(
                f"models.{self.role}.load: {origin} is another model ({found}) than {self.source} ({self.shape}); take one "
                "that was trained from the same"
            )
        fresh = {SCORE: fresh_head(self.shape.hidden_size, seed)}
        load_hf(self.policy, origin, self.layout, fresh=fresh, skip=skip)

    adapted = False
    """Whether it has adapters, which alone are trained."""
    saves_optimizer = False
    """Whether a checkpoint of it also holds an optimizer's state."""

    def saved_weights(self) -> dict[str, Any]:
        """What a checkpoint holds of the model, as Megatron's sharded state."""
        return self.policy.sharded_state_dict()

    def adapter_facts(self) -> dict[str, Any]:
        """What a checkpoint says of the adapters, to compare with another run's; {} without them."""
        return {}

    def parameter_count(self) -> int:
        """Parameters on this rank."""
        return sum(parameter.numel() for parameter in self.policy.parameters())

    def score(self, batches: Sequence[PackedBatch]) -> list[torch.Tensor]:
        """Log-probabilities [N], values [N] or scores [S] per micro-batch on the last stage; an empty list elsewhere.
        Needs no other data-parallel rank."""
        if not batches:
            return []
        self.model.eval()
        try:
            with torch.no_grad():
                return self._run(batches, _reported, forward_only=True)
        finally:
            self.model.train()

    def _run(self, batches: Sequence[PackedBatch], loss: LossFunction, *, forward_only: bool) -> list[Any]:
        """The pipeline over all micro-batches. Returns what `loss` reported, on the last stage."""

        def forward_step(iterator: Any, model: torch.nn.Module) -> tuple[Any, Callable]:
            index, batch = next(iterator)
            return model(batch), lambda output: loss(index, output)

        core = self.policy.config
        parts = core.tensor_model_parallel_size if core.sequence_parallel else 1  # into which a row is cut
        run = get_forward_backward_func()
        return run(
            forward_step_func=forward_step,
            data_iterator=enumerate(padded(batch, parts).to(self.layout.device) for batch in batches),
            model=[self.model],
            num_microbatches=len(batches),
            seq_length=1,  # unused: the stages tell each other the length of every row
            micro_batch_size=1,
            forward_only=forward_only,
        )


def _share(module: PolicyModel, other: PolicyModel) -> set[str]:
    """Makes the parameters of `other` those of `module`, too, where their names are the same; returns the names."""
    theirs = dict(other.named_parameters())
    shared = {name for name, _ in module.named_parameters() if name in theirs and not name.startswith("output_layer.")}
    for name in shared:
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, theirs[name])
    return shared


def _reported(_: int, output: Output) -> tuple[torch.Tensor, torch.Tensor]:
    scores = output.logprobs_N if isinstance(output, TokenScores) else output
    return scores.sum(), scores
