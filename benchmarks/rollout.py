"""`make bench-rollout`: tokens/s of Generate through the rollout service, as a share of the same engine called in-process.

    this process ── gRPC ──▶ services.rollout ──▶ vLLM      (the service)
                 ── socket ▶ bare_engine.py  ──▶ vLLM      (bare: AsyncLLM, and only its timing comes back)

Both engines are up at the same time and take turns, so that a machine that slows down slows both. The tiny model is the
hard case: it generates so fast that whatever the service adds shows; a call takes half a second, so it has many rounds.
Takes about twenty minutes on two cores.
"""

import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from report import conclude, note, rounded, run, spread

from baton.clients.rollout import Prompt, RolloutClient, SamplingParams
from baton.config.roles import BUILTIN_MODEL
from baton.errors import DeadlineError, ServiceFaultError
from baton.local.processes import Child, ready_file_probe

HERE = Path(__file__).parent
GOAL = 0.97
STARTUP_S = 180.0
ROUND_S = 120.0
SETTLE_S = 1.5
"""Pause before a turn: vLLM's processes keep a core busy for a second after their last token."""


@dataclass(frozen=True, slots=True)
class Workload:
    """`prompts` x `responses` sequences at once, each of exactly `new_tokens`; prompts are drawn from `vocabulary`."""

    name: str
    prompts: int
    responses: int
    new_tokens: int
    vocabulary: int
    rounds: int

    @property
    def tokens(self) -> int:
        """Of one turn."""
        return self.prompts * self.responses * self.new_tokens

    def draw(self, seed: int) -> list[list[int]]:
        """Random prompts of 32 tokens; other ones for every seed, so that no cache answers."""
        return np.random.default_rng(seed).integers(3, self.vocabulary, (self.prompts, 32)).tolist()


Side = Callable[[Workload, int], Awaitable[float]]
"""(workload, seed) -> seconds of one call."""

SMOLLM2 = (
    Workload("smollm2 1x8x32", prompts=1, responses=8, new_tokens=32, vocabulary=49152, rounds=11),
    Workload("smollm2 16x4x16", prompts=16, responses=4, new_tokens=16, vocabulary=49152, rounds=11),
    Workload("smollm2 64x2x8", prompts=64, responses=2, new_tokens=8, vocabulary=49152, rounds=11),
)
TINY = (
    Workload("tiny 1x8x128", prompts=1, responses=8, new_tokens=128, vocabulary=512, rounds=61),
    Workload("tiny 16x8x64", prompts=16, responses=8, new_tokens=64, vocabulary=512, rounds=41),
    Workload("tiny 64x8x32", prompts=64, responses=8, new_tokens=32, vocabulary=512, rounds=31),
)


async def through_service(client: RolloutClient, workload: Workload, seed: int) -> float:
    """Seconds of one Generate call, until its last sample is decoded."""
    sampling = SamplingParams(n=workload.responses, temperature=1.0, max_new_tokens=workload.new_tokens, ignore_eos=True)
    prompts = [Prompt(f"s{seed}-p{index}", token_ids=tokens) for index, tokens in enumerate(workload.draw(seed))]
    started, count = time.perf_counter(), 0
    async for generation in client.generate(prompts, sampling=sampling, timeout_s=ROUND_S):
        count += int(generation.samples.response_ids.lengths.sum())
    _check(workload, count)
    return time.perf_counter() - started


async def through_bare(connection: Connection, workload: Workload, seed: int) -> float:
    """Seconds of the same prompts and sampling, in the bare engine's process."""
    request = {"prompts": workload.draw(seed), "responses": workload.responses, "new_tokens": workload.new_tokens}
    answer = await asyncio.to_thread(_ask, connection, request)
    _check(workload, answer["tokens"])
    return answer["seconds"]


def _ask(connection: Connection, request: dict[str, Any]) -> dict[str, float]:
    connection.send_bytes(json.dumps(request).encode())
    if not connection.poll(ROUND_S):
        raise DeadlineError(f"the bare engine gave no answer within {ROUND_S:g} s; is the machine overloaded?")
    try:
        return json.loads(connection.recv_bytes())
    except EOFError:
        raise ServiceFaultError("the bare engine ended during a round; was it killed for its memory?") from None


def _check(workload: Workload, tokens: int) -> None:
    if tokens != workload.tokens:
        raise ServiceFaultError(
            f"{workload.name}: {tokens} tokens came back instead of {workload.tokens}; the sides do unequal work"
        )


async def turn(side: Side, workload: Workload, seed: int) -> float:
    """Tokens/s of one turn."""
    await asyncio.sleep(SETTLE_S)
    return workload.tokens / await side(workload, seed)


async def measure(client: RolloutClient, bare: Connection, workload: Workload) -> dict[str, Any]:
    """Both sides by turns; who goes first alternates. The first two rounds warm up and are not counted."""
    sides: tuple[Side, Side] = partial(through_service, client), partial(through_bare, bare)
    service_rates, bare_rates = [], []
    for index in range(-2, workload.rounds):
        first = index % 2
        rates = [await turn(side, workload, 1000 + index) for side in (sides[first], sides[1 - first])]
        service_rate, bare_rate = rates[first], rates[1 - first]
        note(f"{workload.name} round {index}: service {service_rate:.0f}, bare {bare_rate:.0f} tokens/s")
        if index >= 0:
            service_rates.append(service_rate)
            bare_rates.append(bare_rate)
    service_median, bare_median = statistics.median(service_rates), statistics.median(bare_rates)
    extra_s = workload.tokens / service_median - workload.tokens / bare_median
    pairs = [service_rate / bare_rate for service_rate, bare_rate in zip(service_rates, bare_rates, strict=True)]
    return {
        "ratio": rounded(service_median / bare_median), "microseconds_per_group": rounded(extra_s / workload.prompts * 1e6),
        "ratio_by_round": spread(pairs), "rounds": workload.rounds,
        "service_tokens_per_s": spread(service_rates), "bare_tokens_per_s": spread(bare_rates),
    }  # fmt: skip


@asynccontextmanager
async def both_sides(directory: Path, model: str) -> AsyncIterator[tuple[RolloutClient, Connection]]:
    """The service and the bare engine, on the same run file, and a way to call each. Both end with the block."""
    run_file, socket = directory / "run.yaml", str(directory / "bare.socket")
    policy = {"model": model, "seq_length": 256, "temperature": 1.0, "enforce_eager": True}
    run_file.write_text(yaml.safe_dump({"runtime": {"seed": 7}, "models": {"policy": policy}}))
    ready = {name: directory / f"{name}.ready" for name in ("service", "bare")}
    commands = {
        "service": ["-m", "services.rollout", "--run-file", run_file, "--ready-file", ready["service"]],
        "bare": [HERE / "bare_engine.py", run_file, socket, ready["bare"]],
    }
    children: list[Child] = []
    try:
        for name, arguments in commands.items():
            command = [sys.executable, *map(str, arguments)]
            children.append(Child(name, command, directory / f"{name}.log"))
        service, _ = await asyncio.gather(
            *(child.wait_ready(ready_file_probe(ready[child.name]), STARTUP_S) for child in children)
        )
        with Client(socket) as connection:
            async with RolloutClient(service["address"]) as client:
                yield client, connection
    finally:
        await asyncio.gather(*(child.stop() for child in children))


async def compare(model: str, workloads: Sequence[Workload]) -> dict[str, Any]:
    """Results by name of workload."""
    with tempfile.TemporaryDirectory(prefix="bench-rollout-") as directory:
        async with both_sides(Path(directory), model) as (client, bare):
            return {workload.name: await measure(client, bare, workload) for workload in workloads}


def tiny_model(directory: Path) -> str:
    """The tests' random model of four layers. Made in a process of its own: the client needs no torch."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from models import make_model

    maker = multiprocessing.get_context("spawn").Process(target=make_model, args=(directory,), daemon=True)
    maker.start()
    maker.join(STARTUP_S)
    if maker.exitcode != 0:
        maker.kill()
        raise ServiceFaultError("the tiny model could not be made; see the messages above")
    return str(directory)


def main() -> None:
    """Command line; takes no options."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    parts = run(compare(BUILTIN_MODEL, SMOLLM2))
    with tempfile.TemporaryDirectory(prefix="bench-rollout-model-") as directory:
        parts |= run(compare(tiny_model(Path(directory)), TINY))
    lowest = min(part["ratio"] for part in parts.values())
    conclude("rollout", lowest, "of the bare engine's tokens/s", goal=GOAL, at_least=True, parts=parts)


if __name__ == "__main__":
    main()
