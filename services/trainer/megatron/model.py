"""The policy: Megatron-Core's GPT over packed rows, returning log-probabilities of response tokens only."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region, gather_from_sequence_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig

from services.trainer.megatron.attention import PackedLayout
from services.trainer.megatron.family import ModelShape
from services.trainer.megatron.layers import layer_specs
from services.trainer.megatron.logprobs import Split, vocab_parallel_logprobs
from services.trainer.packing import PackedBatch


class TokenScores(NamedTuple):
    """Per response token [N], float32: log-probability (with gradient) and entropy (without)."""

    logprobs_N: torch.Tensor
    entropies_N: torch.Tensor


class PolicyModel(GPTModel):
    """A GPT whose forward takes a PackedBatch. Stages before the last return hidden states [T, 1, hidden]."""

    def __init__(self, config: TransformerConfig, shape: ModelShape) -> None:
        tensor = config.tensor_model_parallel_size
        super().__init__(
            config=config,
            transformer_layer_spec=layer_specs(config),
            vocab_size=shape.padded_vocab(tensor),
            max_sequence_length=shape.max_positions,
            pre_process=parallel_state.is_pipeline_first_stage(),
            post_process=parallel_state.is_pipeline_last_stage(),
            share_embeddings_and_output_weights=shape.tied_embeddings,
            position_embedding_type="rope",
            rotary_base=shape.rope_base,
        )
        self.shape = shape
        self.register_buffer("inverse_frequencies", _inverse_frequencies(shape), persistent=False)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """As torch's, behind `to` and its like; but the rotary frequencies stay float32, since rounding them to bfloat16
        turns what is a thousand positions away by a radian."""
        frequencies = self.inverse_frequencies
        super()._apply(fn, recurse)
        self.inverse_frequencies = frequencies.to(self.inverse_frequencies.device)
        return self

    @property
    def first_layer(self) -> int:
        """Number of this stage's first layer in the whole model."""
        return self.decoder.layers[0].layer_number - 1

    def angles(self, positions_T: torch.Tensor) -> torch.Tensor:
        """Rotary angles [T, head_dim / 2], float32."""
        return positions_T[:, None].float() * self.inverse_frequencies

    def forward(self, batch: PackedBatch) -> torch.Tensor | TokenScores:
        """Hidden states, or on the last stage the scores of the batch's response tokens."""
        hidden = None
        if self.pre_process:
            hidden = self.embedding(input_ids=batch.tokens_T[None], position_ids=batch.positions_T[None])
        layout = PackedLayout(segments=batch.segments, angles_TD=self.angles(batch.positions_T))
        hidden = self.decoder(hidden_states=hidden, attention_mask=None, packed_seq_params=layout)
        return self._scores(hidden, batch) if self.post_process else hidden

    def logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """Last stage: logits [N, this rank's part of the vocabulary] in float32; -inf for rows that pad the vocabulary."""
        logits_NV = (hidden_NH @ self._head.t()).float()
        if (adapters := self._head_adapters) is not None:
            logits_NV += adapters.up(adapters.down(hidden_NH, alike=True)).float()
        logits_NV[:, self._split.rows :] = -torch.inf
        return logits_NV

    @property
    def _head(self) -> torch.Tensor:
        """This rank's rows of the head."""
        tied = self.share_embeddings_and_output_weights
        return self.shared_embedding_or_output_weight() if tied else self.output_layer.weight

    @property
    def _head_adapters(self) -> Any:
        """Those of the head, whose weight is used without its layer; None if it has none, or they are off."""
        adapters = getattr(self.output_layer, "lora", None)
        return adapters if adapters is not None and adapters.enabled else None

    @property
    def _split(self) -> Split:
        """Which tokens those rows are."""
        rows, first_id = len(self._head), parallel_state.get_tensor_model_parallel_rank() * len(self._head)
        group = parallel_state.get_tensor_model_parallel_group() if self.config.tensor_model_parallel_size > 1 else None
        return Split(min(rows, self.shape.vocab_size - first_id), first_id, group)

    def _scores(self, hidden: torch.Tensor, batch: PackedBatch) -> TokenScores:
        parted = self.config.sequence_parallel
        whole = gather_from_sequence_parallel_region if parted else copy_to_tensor_model_parallel_region
        update = None
        if (adapters := self._head_adapters) is not None:
            (factors,) = adapters.factors.values()
            low_NR = self.output_layer.low(hidden)[:, 0].index_select(0, batch.target_rows_N)
            update = low_NR, factors.lora_B
        hidden = whole(hidden)  # the gradient of either is the sum of the ranks' parts
        chosen_NH = hidden[:, 0].index_select(0, batch.target_rows_N)
        scores = vocab_parallel_logprobs(
            chosen_NH, self._head, batch.target_ids_N, batch.temperatures_N, self._split, update=update
        )
        return TokenScores(*scores)


def _inverse_frequencies(shape: ModelShape) -> torch.Tensor:
    """Rotary frequencies [head_dim / 2], float32, with Llama 3's scaling if the model has it."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32, device="cpu") / shape.head_dim
    frequencies = 1.0 / (shape.rope_base**exponents)
    if not (scaling := shape.rope_scaling):
        return frequencies
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)  # 0: slow, stretched by `factor`; 1: fast, left alone
    return frequencies * (smooth + (1 - smooth) / factor)


def _leave(weight: torch.Tensor) -> torch.Tensor:
    return weight


def transformer_config(
    shape: ModelShape, *, tensor: int, pipeline: int, dtype: torch.dtype, fuse: bool = False, empty: bool = False,
    **options: Any,
) -> TransformerConfig:  # fmt: skip
    """Megatron's config of a Hugging Face decoder. `fuse`: compile SwiGLU; `empty`: make the parameters on the CPU, where
    they take no memory until they are written, and without Megatron's marks."""
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_heads,
        num_query_groups=shape.num_kv_heads,
        kv_channels=shape.head_dim,
        ffn_hidden_size=shape.ffn_size,
        layernorm_epsilon=shape.norm_eps,
        normalization="RMSNorm",
        qk_layernorm=shape.qk_norm,
        add_qkv_bias=shape.qkv_bias,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        bias_activation_fusion=fuse,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        pipeline_dtype=dtype,
        params_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        variable_seq_lengths=True,  # rows have any length
        moe_token_dispatcher_type="alltoall",  # no experts here, but Megatron checks it against the line above
        use_cpu_initialization=empty,
        perform_initialization=not empty,
        init_method=_leave,  # the weights are loaded; Megatron still has to mark which parameters are sharded
        output_layer_init_method=_leave,
        embedding_init_method=_leave,
        **options,
    )
