"""What transformers, the static generator and its engine say to the same 64 prompts; each runs in processes of its own."""

import asyncio
import os
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from services.static_rollout.draw import Sampling
from services.static_rollout.ranking import batches, ranked
from services.static_rollout.rows import Row

PROMPTS = 64
LIMIT = 20
END_TOKENS = frozenset(range(3, 28))
"""A random model comes upon one of them in half of the responses."""
Case = tuple[str, int, bool, int]
"""(kind of sampling, rows of a batch, ranking, cap)"""
Asked = tuple[bool, int, bool, int]
"""(ranking, cap, whether the prompts are asked for from the last to the first, engine seed)"""


def prompts() -> list[list[int]]:
    """Token ids of unequal lengths: two of a single token, most below twenty, some of sixty."""
    random = np.random.default_rng(5)
    lengths = [1, 1, *random.integers(2, 20, PROMPTS - 8), *random.integers(40, 61, 6)]
    return [random.integers(28, 500, length).tolist() for length in random.permutation(lengths)]


def rows(kind: str) -> list[Row]:
    """One row per prompt; `sampled` mixes all options and limits, `unending` is greedy with no end but LIMIT."""
    if kind in ("greedy", "unending"):
        ignore, greedy = kind == "unending", Sampling(temperature=0.0)
        return [Row(f"p{i}/0", prompt, LIMIT, greedy, ignore_eos=ignore) for i, prompt in enumerate(prompts())]
    options = [Sampling(), Sampling(0.8, top_k=20), Sampling(1.2, top_p=0.8), Sampling(0.0), Sampling(1.0, 50, 0.9)]
    return [
        Row(f"p{i}/0", prompt, LIMIT - i % 7, options[i % 5], seed=11, ignore_eos=i % 3 == 0)
        for i, prompt in enumerate(prompts())
    ]


def transformers_greedy(directory: Path) -> list[list[int]]:
    """Each prompt by itself, through transformers' own generation."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    answers = []
    for prompt in prompts():
        ids = model.generate(
            torch.tensor([prompt]), max_new_tokens=LIMIT, do_sample=False, eos_token_id=sorted(END_TOKENS), pad_token_id=0
        )
        answers.append(ids[0, len(prompt) :].tolist())
    return answers


def _stage(rank: int, size: int, port: int, directory: Path, tensor: int) -> Any:
    """This rank's part of the model, after it has joined the others."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import torch

    from services.trainer.megatron.parallel import Layout

    torch.set_num_threads(1)
    layout = Layout.start(tensor=tensor, pipeline=size // tensor, device="cpu", timeout_s=60, seed=0)
    from services.trainer.megatron.stage import CachedStage, load_policy

    return CachedStage(load_policy(directory, layout, torch.float32), layout)


def static(rank: int, size: int, port: int, directory: Path, tensor: int, cases: dict[str, Case]) -> dict[str, Any]:
    """Responses (tokens, log-probabilities, the model's, finish) by case; empty lists on ranks that do not sample."""
    stage = _stage(rank, size, port, directory, tensor)
    from services.static_rollout.generator import StaticGenerator

    answers = {}
    for name, (kind, batch_rows, ranking, cap) in cases.items():
        generator = StaticGenerator(stage, END_TOKENS, lambda ids: " ".join(map(str, ids)), min_prompt_length=cap)
        window = rows(kind)
        order = ranked([len(row.prompt) for row in window]) if ranking else range(len(window))
        by_index = {}
        for batch in batches(order, batch_rows):
            by_index |= zip(batch, generator.generate([window[index] for index in batch]), strict=False)
        answers[name] = [astuple(by_index[index]) for index in sorted(by_index)]
    return answers


def engine_draws(
    rank: int, size: int, port: int, directory: Path, cases: dict[str, Asked]
) -> dict[str, list[dict[str, list[list[int]]]]]:  # fmt: skip
    """What an engine of its own draws for each case without a request's seed: by group, and all of it asked for twice."""
    from services.common.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(directory, trust_remote_code=False)  # before Megatron is redirected to the CPU
    stage = _stage(rank, size, port, directory, 1)
    return {name: asyncio.run(_drawn(stage, tokenizer, *asked)) for name, asked in cases.items()}


async def _drawn(
    stage: Any, tokenizer: Any, ranking: bool, cap: int, backwards: bool, seed: int
) -> list[dict[str, list[list[int]]]]:  # fmt: skip
    from baton.api.rollout.v1 import rollout_pb2 as pb
    from baton.config import RunConfig
    from services.static_rollout.engine import StaticEngine
    from services.static_rollout.generator import StaticGenerator
    from services.static_rollout.worker import Worker
    from services.trainer.ranks import Ranks

    batch_generation = {"ranking": ranking, "min_prompt_length": cap}
    options = {"generator": "megatron", "seq_length": 96, "max_num_seqs": 16, "batch_generation": batch_generation}
    config = RunConfig.from_mapping({"models": {"policy": options}}).models.policy
    generator = StaticGenerator(stage, END_TOKENS, tokenizer.decode, min_prompt_length=cap)
    engine = StaticEngine(config, Ranks(Worker(generator).handlers(), 60.0), tokenizer, 512, seed)
    running = asyncio.create_task(engine.run())

    async def draw(index: int, prompt: list[int]) -> tuple[str, list[list[int]]]:
        group_id, sampling = f"e0-p{index}", pb.SamplingParams(n=2, max_new_tokens=8)
        params = engine.params(sampling, group_id, len(prompt), evaluation=False)
        answer = await engine.generate(group_id, prompt, params)
        return group_id, [list(completion.token_ids) for completion in answer.completions]

    asked = [*enumerate(prompts())][:: -1 if backwards else 1]
    try:
        return [dict(await asyncio.gather(*(draw(*one) for one in asked))) for _ in range(2)]
    finally:
        running.cancel()
