"""One rank's part of one model, evaluated only; `engine.py` adds what training needs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

from baton.config.trainable import ForwardConfig, TrainableConfig
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
        seed: int = 0, share: "HostedModel | None" = None, **options: Any,
    ) -> None:  # fmt: skip
        """Loads a Hugging Face directory; a scalar head that it lacks is made from `seed`. `share`: a model of the same
        directory and dtype whose frozen weights are also this one's. `options` are Megatron's."""
        self.layout, self.head = layout, head
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
        self.policy.inverse_frequencies = self.policy.inverse_frequencies.float()  # positions beyond 256 need more than bf16
        load_hf(self.policy, directory, layout, fresh={SCORE: fresh_head(self.shape.hidden_size, seed)}, skip=shared)
        self.model: torch.nn.Module = self.policy

    def parameter_count(self) -> int:
        """Parameters on this rank."""
        return sum(parameter.numel() for parameter in self.policy.parameters())

    def score(self, batches: Sequence[PackedBatch]) -> list[torch.Tensor]:
        """Log-probabilities [N], values [N] or scores [S] per micro-batch on the last stage; an empty list elsewhere.
        Needs no other data-parallel rank."""
        if not batches:
            return []
        self.model.eval()
        with torch.no_grad():
            answer = self._run(batches, _reported, forward_only=True)
        self.model.train()
        return answer

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
