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
CASES: dict[tuple[int, int, int], dict[str, Case]] = {
    (1, 1, 1): {
        "whole": {},
        "micro-batches of 1": {"micro_batch": 1},
        "micro-batches of 2": {"micro_batch": 2},
        "one micro-batch": {"micro_batch": 16},
        "merged by tokens": {"micro_batch": 2, "tokens": 60},
        "prompts apart": {"options": {"share_prefix": False}},
        "full recompute": {"options": {"recompute_granularity": "full"}},
        "tail 12": {"distinct": 12},
        "tail masked": {"distinct": 12, "wrapped": True, "tail": "mask"},
        "tail wrapped": {"distinct": 12, "wrapped": True},
    },
    (1, 1, 2): {
        "dp2": {"micro_batch": 2},
        "dp2 with a distributed optimizer": {"options": {"use_distributed_optimizer": True}},
        "dp2, tail masked": {"distinct": 12, "wrapped": True, "tail": "mask"},
        "dp2, tail wrapped": {"distinct": 12, "wrapped": True},
    },
    (2, 1, 1): {"tp2": {"micro_batch": 2}, "tp2 with recompute": {"options": {"recompute_granularity": "full"}}},
    (1, 2, 1): {"pp2": {"micro_batch": 2}, "pp2, tail masked": {"distinct": 12, "wrapped": True, "tail": "mask"}},
    (2, 2, 1): {"tp2 pp2": {}},
    (2, 1, 2): {"tp2 dp2": {}},
}
"""By (TP, PP, DP); layouts of as many ranks share a torchrun group."""


def batch_of(step: int) -> Samples:
    """A global batch, which depends on the step alone. Each group has one prompt."""
    samples = training_samples(seed=step)
    prompts = samples.prompt_ids.rows()
    shared = Ragged.of([prompts[i - i % GROUP] for i in range(SIZE)], np.int32)
    return replace(samples, prompt_ids=shared)


def baseline(name: str) -> str:
    """The case on one rank that must give the same numbers."""
    if "masked" in name or name == "tail 12":
        return "tail 12"
    return "tail wrapped" if "wrapped" in name else "whole"
