"""What the two options of `models.policy.batch_generation` save in static batches on Megatron-Core, on the CPU.

`min_prompt_length`: the peak memory of the initiation, by torch's profiler, which sees every allocation of every operator.
What stays allocated afterwards, the key/value cache and the logits, is left out: the cap does not change it.
`ranking`: the share of padding in a window of prompts of unequal length, counted.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import conclude, note, rounded
from torch.profiler import ProfilerActivity, profile

from baton.config.roles import BUILTIN_MODEL
from baton.local.store import free_port
from services.common.model_store import resolve_model
from services.static_rollout.ranking import padded_share, ranked

ROWS, SHORTEST, LONGEST, CAP = 16, 192, 256, 32
WINDOW = 64
GOAL = 0.5


def peak_and_kept(events: list[Any]) -> tuple[int, int]:
    """Most bytes allocated at once since the profiler's start, and bytes still allocated at its end."""
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    live = np.cumsum([size for _, size in changes])
    return int(live.max()), int(live[-1])


def initiation_bytes(stage: Any, prompts: list[list[int]], length: int) -> int:
    """Peak memory of one initiation of `length` tokens, without what it leaves behind."""
    tokens_BL = torch.tensor([prompt[:length] for prompt in prompts])
    stage.begin(len(prompts), LONGEST)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        logits_BV = stage.forward(tokens_BL, want_logits=True)
    peak, kept = peak_and_kept(profiler.profiler.kineto_results.events())
    del logits_BV
    stage.end()
    return peak - kept


def load(directory: Path) -> Any:
    """The model on one rank."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    from services.trainer.megatron.parallel import Layout

    layout = Layout.start(tensor=1, pipeline=1, device="cpu", timeout_s=60, seed=0)
    from services.trainer.megatron.stage import CachedStage, load_policy

    return CachedStage(load_policy(directory, layout, torch.bfloat16), layout)


def main() -> None:
    random = np.random.default_rng(0)
    stage = load(resolve_model(BUILTIN_MODEL))
    prompts = [random.integers(3, 40_000, length).tolist() for length in random.integers(SHORTEST, LONGEST + 1, ROWS)]
    shortest = min(map(len, prompts))
    whole = initiation_bytes(stage, prompts, shortest)
    note(f"initiation of {ROWS} x {shortest} tokens: {whole / 2**20:.1f} MiB at its peak")
    capped = initiation_bytes(stage, prompts, CAP)
    note(f"initiation of {ROWS} x {CAP} tokens (the cap): {capped / 2**20:.1f} MiB at its peak")
    lengths = np.clip(random.lognormal(4.0, 0.7, WINDOW), 4, 512).astype(int).tolist()
    shares: dict[str, dict[str, float]] = {}
    for size in (4, 8, 16):
        plain, sorted_ = (padded_share(lengths, order, size) for order in (range(WINDOW), ranked(lengths)))
        shares[f"batches of {size}"] = {"as they come": rounded(plain), "ranked": rounded(sorted_)}
        note(f"{WINDOW} prompts in batches of {size}: {plain:.1%} padding as they come, {sorted_:.1%} ranked")
    parts = {"initiation_bytes": {f"{ROWS}x{shortest}": whole, f"{ROWS}x{CAP}": capped}, "padded_share": shares}
    conclude("static-batches", capped / whole, "capped / uncapped peak memory", goal=GOAL, at_least=False, parts=parts)


if __name__ == "__main__":
    main()
