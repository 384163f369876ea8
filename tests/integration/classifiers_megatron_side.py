"""`torchrun classifiers_megatron_side.py DIRECTORY TP PP [sequence]`: evaluates every classifier there with the trainer's
engine, in training along the sequence if that is said."""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from scored_models import CLASSIFIERS, samples

from baton.config.trainable import TrainableConfig
from services.trainer.megatron.parallel import Layout
from services.trainer.packing import pack


def evaluate(layout: Layout, directory: Path, *, along_sequence: bool) -> dict[str, np.ndarray]:
    """As the other side; `apart` and `alone` without sharing prompts. Numbers are on the last stage."""
    from services.trainer.megatron.engine import Engine
    from services.trainer.megatron.hosted import HostedModel

    config = TrainableConfig(
        dtype="float32", clip_grad=0.0, tensor_model_parallel_size=layout.tensor_size, sequence_parallel=along_sequence
    )
    batch, answer = samples(), {}
    halves = [batch.take(range(7)), batch.take(range(7, 10))]
    for head in ("values", "scores"):
        fed = {"feed_last": head == "scores"}
        engine = Engine(config, layout, directory, total_steps=1, head=head)
        total = len(batch) if head == "scores" else int(batch.response_ids.lengths.sum())
        outputs = engine.forward_backward(
            [pack(half, **fed) for half in halves], lambda _, output, total=total: (output.sum() / total, output.detach())
        )
        answer[f"{head}_norm"] = np.array(engine.step().grad_norm)
        unshared = HostedModel(config, layout, directory, head=head).score(
            [pack(half, share_prefix=False, **fed) for half in halves]
        )
        if outputs:
            answer |= {head: torch.cat(outputs).numpy(), f"{head}_apart": torch.cat(unshared).numpy()}
    return answer


def main(directory: Path, tensor: int, pipeline: int, kind: str = "") -> None:
    layout = Layout.start(tensor=tensor, pipeline=pipeline, device="cpu", timeout_s=60, seed=0)
    for name in CLASSIFIERS:
        numbers = evaluate(layout, directory / name, along_sequence=kind == "sequence")
        if layout.is_last_stage and layout.tensor_rank == 0:
            np.savez(directory / f"{name}-tp{tensor}pp{pipeline}{kind}.npz", **numbers)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
