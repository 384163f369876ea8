"""Ways to split one and the same training, and the batches that it trains.

A case says: `micro_batch` samples (default GROUP), `tokens` to merge micro-batches to, `options` of models.ppo_policy, and
for the end of an episode `distinct` samples, `wrapped` around to SIZE or not, with `tail`.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from training import training_samples

from baton.samples import Ragged, Samples

SIZE, GROUP, STEPS = 16, 4, 5
Case = dict[str, Any]
MASKED = {"distinct": 12, "wrapped": True, "tail": "mask"}
WRAPPED = {"distinct": 12, "wrapped": True}
FULL = {"recompute_granularity": "full"}
SEQUENCE = {"sequence_parallel": True}
LORA = {"lora": {"enable_lora": True, "lora_dim": 4, "lora_scaling": 16.0}}
CASES: dict[int, dict[tuple[int, int], dict[str, Case]]] = {
    1: {
        (1, 1): {
            "whole": {},
            "micro-batches of 1": {"micro_batch": 1},
            "micro-batches of 2": {"micro_batch": 2},
            "one micro-batch": {"micro_batch": 16},
            "merged by tokens": {"micro_batch": 2, "tokens": 60},
            "prompts apart": {"options": {"share_prefix": False}},
            "padded": {"options": {"pad_samples": True}},
            "padded micro-batches of 8": {"micro_batch": 8, "options": {"pad_samples": True}},
            "full recompute": {"options": FULL},
            "full recompute of 3 layers": {"options": {**FULL, "recompute_num_layers": 3}},
            "selective recompute": {"options": {"recompute_granularity": "selective"}},
            "lora": {"options": LORA},
            "lora with full recompute": {"micro_batch": 2, "options": {**LORA, **FULL}},
            "lora with selective recompute": {"options": {**LORA, "recompute_granularity": "selective"}},
            "tail 12": {"distinct": 12},
            "tail masked": MASKED,
            "tail masked, padded": {**MASKED, "options": {"pad_samples": True}},
            "tail wrapped": WRAPPED,
        },
    },
    2: {
        (1, 1): {
            "dp2": {"micro_batch": 2},
            "dp2 with a distributed optimizer": {"options": {"use_distributed_optimizer": True}},
            "lora dp2 with a distributed optimizer": {"options": {**LORA, "use_distributed_optimizer": True}},
            "dp2, padded": {"options": {"pad_samples": True}},
            "dp2, tail masked": MASKED,
            "dp2, tail wrapped": WRAPPED,
        },
        (2, 1): {
            "tp2": {"micro_batch": 2},
            "tp2 with recompute": {"options": FULL},
            "tp2 along the sequence": {"options": SEQUENCE},
            "lora tp2": {"micro_batch": 2, "options": LORA},
            "lora tp2 along the sequence with full recompute": {"options": {**LORA, **SEQUENCE, **FULL}},
            "tp2 along the sequence with selective recompute": {
                "micro_batch": 2, "options": {"sequence_parallel": True, "recompute_granularity": "selective"},
            },
            "tp2 along the sequence, padded, with full recompute": {
                "options": {"sequence_parallel": True, "pad_samples": True, **FULL},
            },
        },
        (1, 2): {"pp2": {"micro_batch": 2}, "pp2, tail masked": MASKED, "lora pp2": {"micro_batch": 2, "options": LORA}},
    },
    4: {
        (2, 2): {
            "tp2 pp2": {}, "tp2 pp2 along the sequence": {"options": SEQUENCE},
            "lora tp2 pp2 along the sequence": {"options": {**LORA, **SEQUENCE}},
        },
        (2, 1): {"tp2 dp2": {}},
    },
}  # fmt: skip
"""By the number of ranks, which are one torchrun group, then by (TP, PP) of them."""


def batch_of(step: int) -> Samples:
    """A global batch, which depends on the step alone. Each group has one prompt."""
    samples = training_samples(seed=step)
    prompts = samples.prompt_ids.rows()
    shared = Ragged.of([prompts[i - i % GROUP] for i in range(SIZE)], np.int32)
    return replace(samples, prompt_ids=shared)


def baseline(name: str) -> str:
    """The case on one rank that must give the same numbers."""
    if "lora" in name:
        return "lora"
    if "masked" in name or name == "tail 12":
        return "tail 12"
    return "tail wrapped" if "wrapped" in name else "whole"
