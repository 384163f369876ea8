"""Peaks of memory and gradients of small models in training, for `test_trainer_memory.py`.

Runs in a process of its own: the trainer redirects torch's CUDA functions.
"""

import os
from collections.abc import Callable, Iterable
from itertools import accumulate, product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from baton.config.trainable import TrainableConfig
from baton.samples import Ragged, Samples
from models import make_model
from processes import free_port
from services.trainer.megatron.parallel import Layout
from services.trainer.packing import PackedBatch, pack

RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective"},
    "half": {"recompute_granularity": "full", "recompute_num_layers": 4},
    "full": {"recompute_granularity": "full"},
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 6, "num_key_value_heads": 2},
    "qwen3": {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 8, "num_key_value_heads": 4},
}
"""The second has norms on queries and keys, and more numbers in them than in its hidden states."""
LORA = {"lora": {"enable_lora": True, "lora_dim": 8}}
ADAPTED = {
    "adapters": LORA, "adapters, half": LORA | RECOMPUTE["half"],
    "adapters, dropout": {"lora": LORA["lora"] | {"lora_dropout": 0.1}},
}  # fmt: skip
CASES = [
    *product(["llama"], ["float32"], RECOMPUTE), *product(["qwen3"], ["bfloat16"], RECOMPUTE),
    ("llama", "bfloat16", "none"), ("qwen3", "float32", "none"),
    *product(["llama"], ["float32"], ADAPTED), ("qwen3", "bfloat16", "adapters"),
]  # fmt: skip
"""(family, dtype, kind of recompute or of adapters)"""
TOKENS, LENGTH = 1024, 128


def batch() -> PackedBatch:
    """One micro-batch of TOKENS, most of which are predicted."""
    rng, count = np.random.default_rng(0), TOKENS // LENGTH
    return pack(Samples(
        sample_ids=[str(i) for i in range(count)],
        prompt_ids=Ragged.of([rng.integers(3, 500, 16) for _ in range(count)], np.int32),
        response_ids=Ragged.of([rng.integers(3, 500, LENGTH - 15) for _ in range(count)], np.int32),
    ), share_prefix=False)  # fmt: skip


def peak(work: Callable[[], Any]) -> int:
    """Bytes that torch's tensors had at most on this CPU while `work` ran, beyond those before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def measure(directory: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Every case's gradients, peak and what is there between steps, and the estimates of both."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    layout = Layout.start(tensor=1, pipeline=1, device="cpu", timeout_s=60, seed=0)
    options = {"layers": 8, "vocabulary": 2048}
    models = {family: make_model(directory / family, family, **options, **sizes) for family, sizes in SHAPES.items()}
    found = {
        (family, dtype, kind): case(layout, models[family], dtype, (RECOMPUTE | ADAPTED)[kind])
        for family, dtype, kind in CASES
    }
    torch.distributed.destroy_process_group()
    return found


def case(layout: Layout, model: Path, dtype: str, options: dict[str, Any]) -> dict[str, Any]:
    """One engine's."""
    from services.trainer.megatron.adam_steps import begin_where_nothing_is
    from services.trainer.megatron.engine import Engine
    from services.trainer.megatron.lora.memory import adapter_count
    from services.trainer.megatron.memory import memory_of, parameter_count

    config, row = TrainableConfig(dtype=dtype, **options), batch()
    engine = Engine(config, layout, model, total_steps=10)
    taken = peak(lambda: engine.forward_backward([row], lambda _, scores: (-scores.logprobs_N.mean(), None)))
    begin_where_nothing_is(engine.optimizer)
    adam = engine.optimizer.chained_optimizers[0].optimizer
    moments = [value for state in adam.state.values() for value in state.values() if value.ndim]
    masters = [] if dtype == "float32" else [parameter for group in adam.param_groups for parameter in group["params"]]
    parameters = dict(engine.policy.named_parameters())
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    return {
        "gradients": {name: parameter.main_grad.numpy().copy() for name, parameter in trained.items()},
        "peak": taken,
        "lasting": [_size(parameters.values()), _size(p.main_grad for p in trained.values()), _size(moments + masters)],
        "parameters": engine.parameter_count(),
        "estimate": memory_of(engine.shape, config, layout, "logprobs", tokens=len(row.tokens_T), fused=False),
        "estimated_parameters": parameter_count(engine.shape, layout, "logprobs")
        + adapter_count(engine.shape, config.lora, layout, "logprobs"),
    }


def _size(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
