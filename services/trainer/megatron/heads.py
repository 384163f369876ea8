"""What a model makes of its hidden states: log-probabilities of tokens, or one number each for states or whole samples.

A scalar head is Hugging Face's `score.weight` of a sequence classifier with one label. It lies on the last pipeline stage,
the same on every tensor-parallel rank.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig
from safetensors import safe_open
from torch import nn

from baton.errors import ConfigError
from services.trainer.megatron.family import ModelShape
from services.trainer.megatron.model import PolicyModel
from services.trainer.packing import PackedBatch

Head = Literal["logprobs", "values", "scores"]
SCORE = "score.weight"
FRESH_DEVIATION = 0.1
"""Standard deviation of a new head's outputs, about: hidden states come out of a norm."""


class ScalarHead(nn.Module):
    """Hidden states [R, hidden] -> [R], computed in float32."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, hidden_size))

    def forward(self, hidden_RH: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return (hidden_RH.float() @ self.weight[0].float()[:, None])[:, 0]


class ScalarModel(PolicyModel):
    """PolicyModel's body under a scalar head. Its forward returns values [N] of the state before each response token, or
    scores [S] of whole samples; float32, with gradient."""

    def __init__(self, config: TransformerConfig, shape: ModelShape, head: Head) -> None:
        super().__init__(config, replace(shape, tied_embeddings=False, scalar_head=True))
        self.head = head
        if self.post_process:
            self.output_layer = ScalarHead(shape.hidden_size)

    def _scores(self, hidden: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        rows = batch.target_rows_N if self.head == "values" else batch.last_rows_S
        return self.output_layer(hidden[:, 0].index_select(0, rows))


def _labels(directory: Path) -> int:
    """Labels of the scalar head in a Hugging Face directory; 0 if there is none."""
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            if SCORE in set(file.keys()):
                return file.get_slice(SCORE).get_shape()[0]
    return 0


def check_head(directory: Path, role: str, *, required: bool) -> None:
    """Raises ConfigError, naming the role and the fix, for a head of several labels, and for none where it is `required`."""
    labels = _labels(directory)
    if labels > 1:
        raise ConfigError(
            f"models.{role}.model: {directory} classifies into {labels} labels; it must have one, which is the score: "
            "take a model that was saved with num_labels=1"
        )
    if required and not labels:
        config = directory / "config.json"
        raw = json.loads(config.read_text()) if config.is_file() else {}
        kind = ", ".join(raw.get("architectures") or ["a model of unknown kind"])
        raise ConfigError(
            f"models.{role}.model: {directory} ({kind}) has no scalar head {SCORE}; a reward model is a sequence "
            "classifier with num_labels=1: train one with `algorithm: {name: reward_model}`, or take another"
        )


def fresh_head(hidden_size: int, seed: int) -> torch.Tensor:
    """A new head [1, hidden], the same on every rank of every layout."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, hidden_size, generator=generator, device="cpu") * (FRESH_DEVIATION / math.sqrt(hidden_size))
