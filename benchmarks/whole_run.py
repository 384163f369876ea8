"""A whole run on this machine's GPUs: its reward, its seconds per episode by phase, and how busy each GPU is meanwhile.

    python benchmarks/whole_run.py deploy/runs/gpu.yaml [--out DIRECTORY] [--set KEY=VALUE]

`baton run` does the run, beside which nvidia-smi tells five times a second in what share of the time before a kernel ran. It
looks back over up to a second, so that what it says of shorter phases is smeared over their neighbours. Metrics, samples and
logs are kept in the directory.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from report import note, rounded, run

from baton.errors import ServiceFaultError
from baton.local.processes import Child

WARM_UP = 20
"""Episodes that are left out of the medians and shares, if there are three times as many."""
SAMPLE_MS = 200
LOOK_S = 0.05
WINDOWS = 5
"""Parts of equal length that the mean reward is told of."""
_NO_PHASES = ("episode", "compute", "lease")
"""Seconds in a row of metrics that are no phase of the run."""


@dataclass(frozen=True, slots=True)
class Episode:
    """A row of metrics.jsonl, and when it was written, in seconds since 1970."""

    row: dict[str, float]
    end: float

    def phases(self) -> Iterator[tuple[str, float, float]]:
        """(name, first second, last second) of each phase; the row has them in their order."""
        names = [key.partition("/")[2] for key in self.row if key.startswith("seconds/")]
        at = self.end - self.row["seconds/episode"]
        for name in names:
            if name not in _NO_PHASES:
                spent = self.row[f"seconds/{name}"]
                yield name, at, at + spent
                at += spent


@dataclass(frozen=True, slots=True)
class Sample:
    """One GPU at one time: percent of the time before in which a kernel ran, and MiB in use."""

    at: float
    card: str
    busy: float
    memory: float


def read_samples(path: Path) -> list[Sample]:
    """What nvidia-smi wrote; a line that it was cut off in is left out."""
    samples = []
    for line in path.read_text().splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 4 and parts[2].isdigit() and parts[3].isdigit():
            at = datetime.strptime(parts[0], "%Y/%m/%d %H:%M:%S.%f").timestamp()
            samples.append(Sample(at, parts[1], float(parts[2]), float(parts[3])))
    return samples


def shares(episodes: Sequence[Episode], samples: Sequence[Sample]) -> dict[str, Any]:
    """Mean busy share of each card over the episodes, all of them and by phase, and the most memory in use, in GiB."""
    spans = [span for episode in episodes for span in episode.phases()]
    busy: dict[str, list[float]] = defaultdict(list)
    by_phase: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    position, memory = 0, defaultdict(float)
    for sample in sorted(samples, key=lambda one: one.at):
        while position < len(spans) and spans[position][2] <= sample.at:
            position += 1
        memory[sample.card] = max(memory[sample.card], sample.memory / 1024)
        if position < len(spans) and spans[position][1] <= sample.at:
            busy[sample.card].append(sample.busy / 100)
            by_phase[spans[position][0]][sample.card].append(sample.busy / 100)

    def means(values: dict[str, list[float]]) -> dict[str, float]:
        return {card: rounded(statistics.mean(found)) for card, found in sorted(values.items())}

    return {
        "busy": means(busy), "busy_by_phase": {phase: means(cards) for phase, cards in by_phase.items()},
        "peak_memory_gib": {card: rounded(most) for card, most in sorted(memory.items())},
    }  # fmt: skip


def summary(episodes: Sequence[Episode], samples: Sequence[Sample]) -> dict[str, Any]:
    """All figures of the run."""
    steady = episodes[WARM_UP:] if len(episodes) >= 3 * WARM_UP else episodes
    phases = dict.fromkeys(name for episode in steady for name, _, _ in episode.phases())
    told = ["episode", *phases, *(name for name in ("compute", "lease") if f"seconds/{name}" in steady[0].row)]
    rewards = [episode.row["reward_mean"] for episode in episodes if "reward_mean" in episode.row]
    size = max(len(rewards) // WINDOWS, 1)
    updates = {key for key in steady[0].row if key.startswith("publish/")}
    return {
        "episodes": len(episodes), "counted": len(steady),
        "seconds": {name: rounded(statistics.median(e.row.get(f"seconds/{name}", 0.0) for e in steady)) for name in told},
        "weight_update": {
            key.partition("/")[2]: rounded(statistics.median(e.row[key] for e in steady if key in e.row))
            for key in sorted(updates)
        },
        "tokens_per_s": rounded(statistics.median(e.row.get("tokens_per_s", 0.0) for e in steady)),
        "reward_mean": [rounded(statistics.mean(rewards[first : first + size])) for first in range(0, len(rewards), size)],
    } | shares(steady, samples)  # fmt: skip


@contextmanager
def sampled(path: Path) -> Iterator[None]:
    """nvidia-smi writes to `path` as long as the block lasts."""
    query = ["--query-gpu=timestamp,index,utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
    with path.open("w") as sink:
        try:
            process = subprocess.Popen(["nvidia-smi", *query, "-lms", str(SAMPLE_MS)], stdout=sink)
        except FileNotFoundError:
            raise ServiceFaultError("nvidia-smi is not on this machine; run it where the GPUs are") from None
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(10)


def written_rows(path: Path) -> Iterator[str | None]:
    """The lines of a file that is being written, each once; None whenever there is no further one yet. Never ends."""
    while not path.exists():
        yield None
    row = ""
    with path.open() as file:
        while True:
            row += file.readline()
            if row.endswith("\n"):
                yield row
                row = ""
            else:
                yield None


def keep(run_directory: Path, out: Path) -> None:
    """Copies what a run left, but for its models."""
    for name in ("metrics.jsonl", "summary.json", "reward.png", "logs"):
        left = run_directory / name
        if left.is_dir():
            shutil.copytree(left, out / name, dirs_exist_ok=True)
        elif left.exists():
            shutil.copy(left, out / name)


async def measure(options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Does the run in `directory`; its figures."""
    episodes = []
    command = [sys.executable, "-m", "baton.cli", "run", str(options.run_file), "--run-id", "run"]
    command += ["--output-dir", str(directory), *(part for one in options.set for part in ("--set", one))]
    deadline = time.monotonic() + options.limit_s
    with sampled(options.out / "gpu.csv"):
        child = Child("baton-run", command, options.out / "run.log")
        try:
            rows = written_rows(directory / "run" / "metrics.jsonl")
            while True:
                ended = child.process.poll() is not None
                while (row := next(rows)) is not None:
                    episodes.append(Episode(json.loads(row), time.time()))
                if ended or time.monotonic() > deadline:
                    break
                await asyncio.sleep(LOOK_S)
            if child.process.returncode:  # None if it is still at work
                child.check()
        finally:
            await child.stop()
            keep(directory / "run", options.out)
    if not episodes:
        raise ServiceFaultError(f"the run finished no episode within {options.limit_s:g} s; see {child.log}")
    note(f"{len(episodes)} episodes")
    return {"finished": ended} | summary(episodes, read_samples(options.out / "gpu.csv"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_file", type=Path)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "bench-whole-run")))
    parser.add_argument("--limit-s", type=float, default=1800.0, help="when the run is ended if it has not finished")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the run file")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-whole-run-") as directory:
        parts = run(measure(options, Path(directory)))
    result = {"name": f"whole-run {options.run_file.stem}", "value": parts["seconds"]["episode"], "unit": "s an episode"}
    print(json.dumps(result | {"parts": parts}), flush=True)


if __name__ == "__main__":
    main()
