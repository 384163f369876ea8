"""`torchrun megatron_side.py DIRECTORY TP`: scores the samples with the trainer's engine on every model in DIRECTORY; with
several ranks once more, with sequence parallelism."""

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from scored_models import MODELS, samples

from baton.config.trainable import TrainableConfig
from services.trainer.megatron.parallel import Layout
from services.trainer.packing import pack


def gradients(engine: Any) -> dict[str, np.ndarray]:
    """By "gradient of NAME", with Hugging Face's names: every whole tensor's accumulated gradient, on every rank."""
    from megatron.core import parallel_state

    from services.trainer.megatron.hf import whole_tensors
    from services.trainer.megatron.names import NameMap

    policy, group, found = engine.policy, parallel_state.get_tensor_model_parallel_group(), {}
    names, size = NameMap(policy.shape), group.size()
    for name, parameter in policy.named_parameters():
        if names.is_copy(name):
            continue
        shards = [torch.empty_like(parameter.main_grad) for _ in range(size)]
        dist.all_gather(shards, parameter.main_grad.contiguous(), group=group)
        places = [names.places(name, policy.first_layer, rank, size) for rank in range(size)]
        found |= {f"gradient of {hf_name}": whole.numpy() for hf_name, whole in whole_tensors(shards, places).items()}
    return found


def score(layout: Layout, directory: Path, **options: Any) -> dict[str, np.ndarray]:
    """As `transformers_side.score`, in two packed rows with shared prompts; `apart` without sharing them."""
    from services.trainer.megatron.engine import Engine
    from services.trainer.megatron.model import TokenScores

    config = TrainableConfig(
        dtype="float32", clip_grad=0.0, tensor_model_parallel_size=layout.tensor_size, **options
    )
    engine = Engine(config, layout, directory, total_steps=1)
    batch = samples()
    tokens = int(batch.response_ids.lengths.sum())
    halves = [batch.take(range(7)), batch.take(range(7, 10))]
    apart = torch.cat(engine.score([pack(half, share_prefix=False) for half in halves]))

    def loss(_: int, scores: TokenScores) -> tuple[torch.Tensor, TokenScores]:
        detached = TokenScores(scores.logprobs_N.detach(), scores.entropies_N)
        return -scores.logprobs_N.sum() / tokens, detached

    scores = engine.forward_backward([pack(half) for half in halves], loss)
    norm = engine.finish()
    columns = {"logprobs": [half.logprobs_N for half in scores], "entropies": [half.entropies_N for half in scores]}
    return gradients(engine) | {name: torch.cat(parts).numpy() for name, parts in columns.items()} | {
        "apart": apart.numpy(),
        "grad_norm": np.array(norm),
    }


def main(directory: Path, tensor: int) -> None:
    layout = Layout.start(tensor=tensor, pipeline=1, device="cpu", timeout_s=60, seed=0)
    kinds = {f"tp{tensor}": {}} | ({f"tp{tensor}-sequence": {"sequence_parallel": True}} if tensor > 1 else {})
    for name, (kind, options) in itertools.product(MODELS, kinds.items()):
        scores = score(layout, directory / name, **options)
        if layout.world_rank == 0:
            np.savez(directory / f"{name}-{kind}.npz", **scores)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
