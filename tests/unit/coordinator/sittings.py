"""Runs that end before they are done and are gone on with, with fakes and the real buffer."""

import json
from pathlib import Path

from harness import config, digits_count, place, questions

from baton.engine import Engine
from baton.errors import RunFailedError
from baton.testing import FakeTrainer

EPISODES, STEPS = 5, 10  # two steps each
PLAIN = {"runtime": {"num_episode": EPISODES, "save_episode_interval": 2}}
RELAYED = {
    "runtime": PLAIN["runtime"] | {
        "max_relay_episode": 2, "relay_sample_fn": "uniform", "relay_sample_params": {"k": 8},
    },
}  # fmt: skip


class Dies(FakeTrainer):
    """Fails in the step after `last`."""

    def __init__(self, last: int = 10**9) -> None:
        super().__init__()
        self.last = last

    async def _step(self, request):
        if self.global_step == self.last:
            raise RunFailedError("the machine is gone")
        return await super()._step(request)


async def sit(buffer, run_id, folder, trainer, sections=PLAIN, resume=None, engine=None, **options):
    """One sitting of the run, to its end; its last state."""
    engine = engine or Engine(prompts=questions, flow=digits_count)
    async with place(
        buffer.address, folder, trainer=trainer, run=config(**sections), engine=engine, **options
    ) as there:
        there.coordinator.start_run(run_id, resume)
        return (await there.finish())[-1].state


def rows(folder: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def trained(*parts: list) -> list[list[str]]:
    return [samples.sample_ids for part in parts for samples in part]
