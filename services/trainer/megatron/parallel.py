"""Process groups of one torchrun group, on gloo (CPU) or NCCL (CUDA), and who this rank is in them."""

import hashlib
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes and this rank's place: tensor (TP), pipeline (PP) and data (DP) parallel."""

    device: torch.device
    world_rank: int
    tensor_rank: int
    tensor_size: int
    pipeline_rank: int
    pipeline_size: int
    data_rank: int
    data_size: int

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank computes log-probabilities."""
        return self.pipeline_rank == self.pipeline_size - 1

    @property
    def is_sender(self) -> bool:
        """Whether this rank sends its shard of the weights."""
        return self.data_rank == 0

    @classmethod
    def start(cls, *, tensor: int, pipeline: int, device: str, timeout_s: float, seed: int) -> Self:
        """Joins the torchrun group and builds Megatron's groups. Every collective fails after `timeout_s`."""
        cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        else:
            from services.trainer.megatron.cpu import redirect_cuda_to_cpu

            redirect_cuda_to_cpu()
        dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_s))
        return cls.arrange(tensor=tensor, pipeline=pipeline, timeout_s=timeout_s, seed=seed)

    @classmethod
    def arrange(cls, *, tensor: int, pipeline: int, timeout_s: float, seed: int) -> Self:
        """Builds Megatron's groups of this process group's ranks; those of an earlier layout are given up."""
        from megatron.core import parallel_state, tensor_parallel

        parallel_state.destroy_model_parallel()
        parallel_state.initialize_model_parallel(tensor, pipeline, distributed_timeout_minutes=timeout_s / 60)
        tensor_parallel.model_parallel_cuda_manual_seed(seed)
        cuda = dist.get_backend() == "nccl"
        return cls(
            device=torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu"),
            world_rank=dist.get_rank(),
            tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
            tensor_size=tensor,
            pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
            pipeline_size=pipeline,
            data_rank=parallel_state.get_data_parallel_rank(),
            data_size=parallel_state.get_data_parallel_world_size(),
        )


def seed_step(seed: int, global_step: int) -> None:
    """Has the random numbers of the optimizer step that follows `global_step` depend on the two alone, and on this rank's
    place in a model: a run that is resumed draws them as if it had not been interrupted."""
    from megatron.core import tensor_parallel

    mixed = hashlib.blake2b(f"{seed}/{global_step}".encode(), digest_size=4).digest()
    tensor_parallel.model_parallel_cuda_manual_seed(int.from_bytes(mixed, "little"))
    torch.manual_seed(int.from_bytes(mixed, "little"))
