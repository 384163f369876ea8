"""The sides of `trainer.py`, one process each. Not a benchmark by itself.

    python benchmarks/trainer_cpu_sides.py make|baton|transformers MODEL_DIRECTORY

Reads a batch's name from each line of stdin, makes one update on that batch and answers with a line of JSON.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from baton.samples import Ragged, RewardStatus, Samples

DTYPE = torch.bfloat16
MICRO_BATCH = 8
SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
"""SmolLM2-135M's."""
LEARNING_RATE, CLIP_GRAD, CLIP_LOW, CLIP_HIGH = 1e-5, 1.0, 0.2, 0.2


def make_samples(prompts: list[int], answers: list[int], group: int) -> Samples:
    """Random samples of those lengths; each `group` of them share a prompt, and have rewards of mean 0 and deviation 1."""
    rng, count = np.random.default_rng(0), len(answers)
    tokens = [rng.integers(5, SHAPE["vocab_size"], length) for length in prompts]
    return Samples(
        sample_ids=[str(i) for i in range(count)],
        group_ids=[str(i // group) for i in range(count)],
        prompt_ids=Ragged.of([tokens[i // group] for i in range(count)], np.int32),
        response_ids=Ragged.of([rng.integers(5, SHAPE["vocab_size"], length) for length in answers], np.int32),
        rollout_logprobs=Ragged.of([np.full(length, -np.log(SHAPE["vocab_size"])) for length in answers], np.float32),
        rewards=np.where(np.arange(count) % 2, 1.0, -1.0).astype(np.float32),
        reward_status=np.full(count, RewardStatus.VALUE, np.uint8),
        group_reward_mean=np.zeros(count, np.float32),
        group_reward_std=np.ones(count, np.float32),
        temperatures=np.ones(count, np.float32),
    )


def batches() -> dict[str, Samples]:
    """`mixed`: 16 prompts of 32 to 128 tokens, one answer of 16 to 384 each, most of them short. `groups`: two prompts of
    256 tokens with 8 answers of 32 to 128 each."""
    rng = np.random.default_rng(1)
    answers = np.clip(rng.lognormal(4.4, 0.8, 16), 16, 384).astype(int).tolist()
    return {
        "mixed": make_samples(rng.integers(32, 129, 16).tolist(), answers, group=1),
        "groups": make_samples([256, 256], rng.integers(32, 129, 16).tolist(), group=8),
    }


def make(directory: Path) -> None:
    """A random model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE), dtype=DTYPE).save_pretrained(directory)


def baton(directory: Path) -> Callable[[Samples], float]:
    """The trainer's own step, from leased samples on. Returns the gradient norm."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    from services.trainer.megatron.parallel import Layout

    layout = Layout.start(tensor=1, pipeline=1, device="cpu", timeout_s=60, seed=0)
    from baton.clients.buffer import MicroBatch
    from baton.config.policy_gradient import GrpoConfig
    from baton.config.trainable import TrainableConfig
    from services.trainer.megatron.engine import Engine
    from services.trainer.objectives import objective_for
    from services.trainer.step import train_step

    config = TrainableConfig(dtype="bfloat16", lr=LEARNING_RATE, clip_grad=CLIP_GRAD)
    engine = Engine(config, layout, directory, total_steps=1000)
    objective = objective_for(GrpoConfig(clip_ratio_low=CLIP_LOW, clip_ratio_high=CLIP_HIGH))

    def update(samples: Samples) -> float:
        cuts = [range(first, first + MICRO_BATCH) for first in range(0, len(samples), MICRO_BATCH)]
        leased = [MicroBatch("", samples.take(cut), np.zeros(MICRO_BATCH, bool)) for cut in cuts]
        return train_step(objective, {"ppo_policy": engine}, leased, tail="wrap").updates["ppo_policy"].grad_norm

    return update


def transformers(directory: Path) -> Callable[[Samples], float]:
    """A plain loop: micro-batches padded to their longest sample, SDPA, logits of the answers' part only, AdamW on bfloat16
    weights. Returns the gradient norm."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=DTYPE, attn_implementation="sdpa")
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)

    def loss(samples: Samples, total: int) -> torch.Tensor:
        prompts, answers = samples.prompt_ids.rows(), samples.response_ids.rows()
        before, after = max(map(len, prompts)), max(map(len, answers))
        ids_BL = torch.zeros(len(prompts), before + after, dtype=torch.int64)
        mask_BL = torch.zeros_like(ids_BL)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            part = slice(before - len(prompt), before + len(answer))
            ids_BL[row, part] = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))
            mask_BL[row, part] = 1
        positions_BL = (mask_BL.cumsum(1) - 1).clamp(min=0)
        output = model(
            ids_BL[:, :-1], attention_mask=mask_BL[:, :-1], position_ids=positions_BL[:, :-1], logits_to_keep=after,
            use_cache=False,
        )  # fmt: skip
        chosen_BA, kept_BA = ids_BL[:, before:], mask_BL[:, before:].bool()
        logprobs_N = -torch.nn.functional.cross_entropy(
            output.logits[kept_BA].float(), chosen_BA[kept_BA], reduction="none"
        )  # fmt: skip
        old_N = torch.from_numpy(samples.rollout_logprobs.values)
        advantages_N = torch.from_numpy(np.repeat(samples.rewards, samples.response_ids.lengths.astype(int)))
        ratio_N = (logprobs_N - old_N).exp()
        clipped_N = ratio_N.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
        return -torch.minimum(ratio_N * advantages_N, clipped_N * advantages_N).sum() / total

    def update(samples: Samples) -> float:
        total = int(samples.response_ids.lengths.sum())
        for first in range(0, len(samples), MICRO_BATCH):
            loss(samples.take(range(first, first + MICRO_BATCH)), total).backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_GRAD))
        optimizer.step()
        optimizer.zero_grad()
        return norm

    return update


def main() -> None:
    side, directory = sys.argv[1], Path(sys.argv[2])
    if side == "make":
        return make(directory)
    answers, sys.stdout = sys.stdout, sys.stderr  # nothing else may write between the answers
    sides: dict[str, Callable[[Path], Callable[[Samples], float]]] = {"baton": baton, "transformers": transformers}
    update, samples = sides[side](directory), batches()
    for line in sys.stdin:
        started, spent = time.perf_counter(), time.process_time()
        norm = update(samples[line.strip()])
        answer: dict[str, Any] = {
            "seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - spent, "grad_norm": norm,
        }  # fmt: skip
        print(json.dumps(answer), file=answers, flush=True)
    return None


if __name__ == "__main__":
    main()
