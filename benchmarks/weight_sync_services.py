"""The trainer and rollout services that `weight_sync.py` measures, started as `baton run` starts them."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from report import note

from baton.clients import LoopClient, RolloutClient, TrainerClient
from baton.clients.rollout import Prompt, SamplingParams
from baton.config import load_run
from baton.local import commands
from baton.local.devices import VARIABLE
from baton.local.processes import Child, ready_file_probe
from baton.samples import Ragged, Samples

HERE = Path(__file__).parent
STARTUP_S = 240.0
SETTLE_S = 0.3
"""A GPU may still be at a step's last kernels when the step is answered; they are no part of the update."""
TURN_S = 120.0
"""The longest that one update, one broadcast or one answer may take."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the parts run. `cards` are CUDA_VISIBLE_DEVICES of trainer and rollout, None on the CPU."""

    directory: Path
    logs: Path
    cards: tuple[str, str] | None

    def environment(self, side: int) -> dict[str, str]:
        """Of a process of the trainer's side (0) or the rollout's (1)."""
        return {} if self.cards is None else {VARIABLE: self.cards[side]}

    def child(self, name: str, command: Sequence[str], side: int) -> Child:
        """Starts a process on the trainer's side (0) or the rollout's (1)."""
        return Child(name, command, self.logs / f"{name}.log", env=self.environment(side))


def run_file(place: Place, name: str, model: Path, overrides: Sequence[str], policy: Mapping[str, Any]) -> Path:
    """Writes the run of one model; `overrides` are KEY=VALUE, as of `baton run --set`."""
    device = "cpu" if place.cards is None else "cuda"
    graphs = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32]}
    engine = {"enforce_eager": True} if place.cards is None else {"engine_args": {"compilation_config": graphs}}
    tree = {
        "runtime": {"seed": 7, "train_micro_batch_size": 4},
        "models": {
            "policy": {
                "model": str(model), "device": device, "dtype": "bfloat16", "seq_length": 1024, "max_num_seqs": 32,
                "max_num_batched_tokens": 2048, "gpu_memory_utilization": 0.4, **engine, **policy,
            },
            "ppo_policy": {"device": device, "dtype": "bfloat16", "lr": 1e-3},
        },
        "deadlines": {"publish_s": TURN_S},
    }  # fmt: skip
    path = place.directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    path.write_text(load_run(path, overrides).to_yaml())
    return path


@asynccontextmanager
async def started(place: Place, name: str, command: Sequence[str], ready: Path, side: int) -> AsyncIterator[dict[str, Any]]:
    """A process that says by a file that it is ready: what it says. It ends with the block."""
    ready.unlink(missing_ok=True)
    begun, child = time.monotonic(), place.child(name, command, side)
    try:
        facts = await child.wait_ready(ready_file_probe(ready), STARTUP_S)
        note(f"{name} is ready after {time.monotonic() - begun:.0f} s")
        yield facts
    finally:
        await child.stop()


@asynccontextmanager
async def rollout(place: Place, name: str, run: Path) -> AsyncIterator[RolloutClient]:
    """A rollout replica on the rollout's card."""
    ready = place.directory / f"{name}.ready"
    command = commands.rollout_command(load_run(run), run, ready, 0)
    async with started(place, name, command, ready, 1) as facts, RolloutClient(facts["address"]) as client:
        yield client


class Trainer:
    """The trainer service, and how its weights change."""

    def __init__(self, address: str, vocabulary: int, learns: bool) -> None:
        self.client, self._loop = TrainerClient(address), LoopClient(address)
        self._vocabulary, self._learns = vocabulary, learns
        self._random = np.random.default_rng(3)

    async def change(self) -> None:
        """Other weights: by an optimizer step on random answers, or where no optimizer fits, by noise."""
        if self._learns:
            tokens = [self._random.integers(3, self._vocabulary, (4, length)).astype(np.int32) for length in (16, 32)]
            prompts, responses = (Ragged.of(list(rows), np.int32) for rows in tokens)
            samples = Samples(sample_ids=[str(row) for row in range(4)], prompt_ids=prompts, response_ids=responses)
            await self._loop.forward_backward(samples, loss={"name": "sft"}, timeout_s=STARTUP_S)  # the first one compiles
        await self._loop.optim_step(timeout_s=TURN_S)
        await asyncio.sleep(SETTLE_S)

    async def close(self) -> None:
        """Ends the connections."""
        await self.client.close()
        await self._loop.close()


@asynccontextmanager
async def trainer(place: Place, run: Path, vocabulary: int, *, learns: bool) -> AsyncIterator[Trainer]:
    """The service on the trainer's card. If it does not learn, it holds weights only: `weight_sync_trainer.py`."""
    config, ready = load_run(run), place.directory / "trainer.ready"
    command = commands.trainer_command(config, run, ready, next(iter(config.trainer_groups().values())))
    if not learns:
        module = command.index("services.trainer")
        command[module - 1 : module + 1] = [str(HERE / "weight_sync_trainer.py")]
    async with started(place, "trainer", command, ready, 0) as facts:
        client = Trainer(facts["address"], vocabulary, learns)
        try:
            yield client
        finally:
            await client.close()


async def all_of(starts: Sequence[Coroutine[Any, Any, Any]], *, one_by_one: bool) -> list[Any]:
    """What the starts return. On one card one follows the other: an engine takes for its own what others take meanwhile."""
    if one_by_one:
        return [await start for start in starts]
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(start) for start in starts]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in running]


async def answers(client: RolloutClient, vocabulary: int) -> list[list[int]]:
    """The greedy answers to four prompts, asked one after another, so that none is computed together with others."""
    sampling, found = SamplingParams(n=1, temperature=0.0, max_new_tokens=24, ignore_eos=True), []
    for row, tokens in enumerate(np.random.default_rng(5).integers(3, vocabulary, (4, 32)).tolist()):
        prompts = [Prompt(f"greedy-{row}", token_ids=tokens)]
        async for generation in client.generate(prompts, sampling=sampling, timeout_s=TURN_S):
            found.append(generation.samples.response_ids.values.tolist())
    return found


@asynccontextmanager
async def generating(client: RolloutClient, vocabulary: int) -> AsyncIterator[None]:
    """Keeps 32 long responses under way, for as long as the block lasts."""

    async def work() -> None:
        for turn in range(1_000_000):
            tokens = np.random.default_rng(1000 + turn).integers(3, vocabulary, (32, 32)).tolist()
            prompts = [Prompt(f"busy-{turn}-{row}", token_ids=row_tokens) for row, row_tokens in enumerate(tokens)]
            sampling = SamplingParams(n=1, temperature=1.0, max_new_tokens=960, ignore_eos=True)
            async for _ in client.generate(prompts, sampling=sampling, timeout_s=600.0):
                pass

    task = asyncio.create_task(work())
    try:
        await asyncio.sleep(1.0)
        yield
        if task.done():
            task.result()  # it was to go on: raises what ended it
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task
