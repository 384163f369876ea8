"""A coordinator with fakes for the models and the real buffer, in the test's own event loop."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.config import RunConfig
from baton.engine import Engine
from baton.testing import FakeRollout, FakeScoring, FakeTrainer, Served, serve
from services.coordinator.connections import Addresses
from services.coordinator.coordinator import Coordinator
from services.coordinator.events import Event
from services.coordinator.state import RunState

RUNTIME = {
    "num_episode": 3,
    "sample_per_episode": 8,
    "num_inference_per_prompt": 4,
    "train_micro_batch_size": 2,
    "train_global_batch_size": 4,
}


async def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Returns once it holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def config(runtime: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    """Two prompts x 4 responses an episode, two steps of 4, three episodes; prompts come from the app."""
    return RunConfig.from_mapping({"models": {}, "runtime": RUNTIME | (runtime or {}), **sections})


async def digits_count(context, prompts):
    """A flow with rewards of its own, so that a run needs no reward workers."""
    async for group in context.generate(prompts):
        yield group.with_rewards([float(text) if text.isdigit() else None for text in group.texts])


def questions():
    return [{"prompt": f"question {i}", "number": i} for i in range(5)]


ENGINE = Engine(prompts=questions, flow=digits_count)


class TrainerGroup(FakeScoring, FakeTrainer):
    """A trainer that hosts models to ask, too."""


class Held(FakeRollout):
    """Takes requests, and answers them once it may `go` on."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()

    async def Generate(self, request, context):
        async for answer in super().Generate(request, context):
            await self.go.wait()
            yield answer


class AnswersOnce(FakeRollout):
    """Answers one prompt of the first request, and nothing more."""

    async def Generate(self, request, context):
        async for answer in super().Generate(request, context):
            yield answer
            await asyncio.sleep(60)


@dataclass
class Place:
    """A coordinator and what it works with."""

    coordinator: Coordinator
    trainer: Served
    rollouts: list[Served]
    folder: Path

    async def finish(self, timeout_s: float = 60.0) -> list[Event]:
        """All events of the run, which must end in time."""
        async with asyncio.timeout(timeout_s):
            return [event async for event in self.coordinator.watch_run()]

    async def run(self, run_id: str) -> RunState:
        """Starts the run; its state at the end."""
        self.coordinator.start_run(run_id)
        return (await self.finish())[-1].state

    def rows(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """The lines of a file that the run left."""
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

    async def until(self, phase: str, timeout_s: float = 30.0) -> None:
        """Waits for the run to enter a phase."""
        async with asyncio.timeout(timeout_s):
            async for event in self.coordinator.watch_run():
                if event.state.phase == phase:
                    return
        raise AssertionError(f"the run ended without the phase {phase}")


@asynccontextmanager
async def place(
    buffer: str, folder: Path, *, engine: Engine = ENGINE, trainer: FakeTrainer | None = None,
    rollouts: tuple[FakeRollout, ...] = (), run: RunConfig | None = None, groups: dict[str, TrainerGroup] | None = None,
) -> AsyncIterator[Place]:  # fmt: skip
    """Fakes at work, and a coordinator that has not started. `groups`: further trainer groups by name."""
    run = run or config()
    async with AsyncExitStack() as stack:
        fakes = () if run.is_offline else rollouts or (FakeRollout(),)
        served = [await stack.enter_async_context(serve(fake)) for fake in fakes]
        others = {name: await stack.enter_async_context(serve(group)) for name, group in (groups or {}).items()}
        training = await stack.enter_async_context(serve(trainer or FakeTrainer()))
        addresses = Addresses(buffer, training.address, tuple(one.address for one in served),
                              {name: other.address for name, other in others.items()})  # fmt: skip
        coordinator = Coordinator(run, engine, addresses, output_dir=folder, dashboard_url="http://here/")
        try:
            yield Place(coordinator, training, served, folder)
        finally:
            await coordinator.close()
