"""One pipeline stage of a static batch: Megatron-Core's static key/value cache, filled by one forward after another.

Shape suffixes: B rows of the batch, L positions of one forward, H hidden, V vocabulary.
"""

from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.inference.contexts import StaticInferenceContext

from services.trainer.megatron.family import ModelShape
from services.trainer.megatron.hf import load_hf
from services.trainer.megatron.model import PolicyModel, transformer_config
from services.trainer.megatron.parallel import Layout


def load_policy(directory: Path, layout: Layout, dtype: torch.dtype) -> PolicyModel:
    """This rank's part of a Hugging Face directory, for generation only: no gradients and no optimizer."""
    shape = ModelShape.read(directory)
    shape.check_parallelism(layout.tensor_size, layout.pipeline_size)
    core = transformer_config(shape, tensor=layout.tensor_size, pipeline=layout.pipeline_size, dtype=dtype)
    policy = PolicyModel(core, shape).to(layout.device, dtype)
    load_hf(policy, directory, layout)
    return policy.eval().requires_grad_(False)


class CachedStage:
    """This rank's layers over a static batch. Every method but `begin` is a collective of all ranks."""

    def __init__(self, policy: PolicyModel, layout: Layout) -> None:
        self.policy = policy
        self.layout = layout
        self.sampler_rank = (layout.pipeline_size - 1) * layout.tensor_size
        """The rank that gets the logits: tensor-parallel rank 0 of the last stage."""
        self._context: StaticInferenceContext | None = None
        self._rotary: torch.Tensor | None = None

    @property
    def is_sampler(self) -> bool:
        """Whether this rank gets the logits."""
        return self.layout.world_rank == self.sampler_rank

    def begin(self, rows: int, positions: int) -> None:
        """Starts a batch of `rows` that will be fed `positions` tokens each; the last batch's cache is let go first."""
        self._context = None
        self._context = StaticInferenceContext(rows, positions)
        angles = self.policy.angles(torch.arange(positions, device=self.layout.device))
        self._rotary = torch.cat([angles, angles], dim=-1)[:, None, None]

    def end(self) -> None:
        """Lets the cache go."""
        self._context = self._rotary = None

    @torch.no_grad()
    def forward(self, tokens_BL: torch.Tensor, *, want_logits: bool) -> torch.Tensor | None:
        """Feeds the next L positions of every row: all positions so far at once, or one.

        Returns the logits [B, V] after the last of them, float32, on the sampler's rank if `want_logits`; None elsewhere.
        """
        rows, positions = tokens_BL.shape
        policy, context, hidden_LBH = self.policy, self._context, None
        if policy.pre_process:
            start = context.sequence_len_offset
            positions_1L = torch.arange(start, start + positions, device=tokens_BL.device)[None]
            hidden_LBH = policy.embedding(input_ids=tokens_BL, position_ids=positions_1L)
        else:
            policy.set_input_tensor(self._received(positions, rows))
        hidden_LBH = policy.decoder(
            hidden_states=hidden_LBH, attention_mask=None, inference_context=context, rotary_pos_emb=self._rotary
        )
        context.increment_sequence_len_offset(positions)
        if not policy.post_process:
            dist.send(hidden_LBH.contiguous(), parallel_state.get_pipeline_model_parallel_next_rank())
            return None
        return self._gathered(policy.logits(hidden_LBH[-1])) if want_logits else None

    def _received(self, positions: int, rows: int) -> torch.Tensor:
        config = self.policy.config
        hidden_LBH = torch.empty(positions, rows, config.hidden_size, dtype=config.params_dtype, device=self.layout.device)
        dist.recv(hidden_LBH, parallel_state.get_pipeline_model_parallel_prev_rank())
        return hidden_LBH

    def _gathered(self, logits_BV: torch.Tensor) -> torch.Tensor | None:
        """The whole vocabulary's logits on the sampler's rank."""
        parts = [logits_BV]
        if self.layout.tensor_size > 1:
            parts = [torch.empty_like(logits_BV) for _ in range(self.layout.tensor_size)] if self.is_sampler else None
            group = parallel_state.get_tensor_model_parallel_group()
            dist.gather(logits_BV.contiguous(), parts, dst=self.sampler_rank, group=group)
        return torch.cat(parts, dim=1)[:, : self.policy.shape.vocab_size] if self.is_sampler else None
