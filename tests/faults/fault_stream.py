"""A stream of samples from a producer process through a buffer and a store to a lessee process, and the count at its end."""

import json
import os
import random
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import stream_plan

from baton.clients import LedgerClient, blocking
from processes import Process, ServiceProcess, StoreProcess

KILLS = int(os.environ.get("BATON_KILLS", "12"))
SEED = int(os.environ.get("BATON_SEED", "7"))
MOVES_WITHIN_S = 100.0
ENDS_WITHIN_S = 300.0


class Worker(Process):
    """The producer or the lessee."""

    def __init__(self, name: str, directory: Path, *arguments: str) -> None:
        self.ready_file = directory / f"{name}.ready"
        command = [sys.executable, str(Path(__file__).with_name(f"stream_{name}.py")), *arguments]
        super().__init__(command, directory / f"{name}.log", self._is_ready)

    def _is_ready(self) -> bool:
        return self.ready_file.exists() and self.ready_file.read_text() == str(self.popen.pid)


class Stream:
    """The four processes of one run. Buffer and store run already, and are left running."""

    def __init__(
        self,
        store: StoreProcess,
        buffer: ServiceProcess,
        run_id: str,
        directory: Path,
        *,
        window: int = 1,
        twice: bool = False,
    ) -> None:
        self.run_id, self.directory = run_id, directory
        self.random, self.kills, self.began = random.Random(SEED), Counter(), time.monotonic()
        common, mode = (buffer.address, run_id, str(directory)), ["twice"] if twice else []
        self.processes: dict[str, Process] = {
            "buffer": buffer,
            "store": store,
            "producer": Worker("producer", directory, *common, *mode),
            "lessee": Worker("lessee", directory, *common, str(window), *mode),
        }

    def __enter__(self) -> "Stream":
        for name in ("producer", "lessee"):
            self.processes[name].start()
        return self

    def __exit__(self, *_: object) -> None:
        for name in ("producer", "lessee"):
            self.processes[name].kill()

    def size(self, victim: str) -> int:
        """Grows with what the victim does: prompt groups granted to the producer, steps leased by the lessee, or both."""
        names = {"producer": ["grants"], "lessee": ["leases"]}.get(victim, ["grants", "leases"])
        return sum((self.directory / name).stat().st_size for name in names)

    def wait_for_moves(self, victim: str) -> None:
        """Until the victim did something from now on."""
        size, deadline = self.size(victim), time.monotonic() + MOVES_WITHIN_S
        while self.size(victim) <= size:
            self.check_workers()
            assert time.monotonic() < deadline, (
                f"nothing moved for {MOVES_WITHIN_S} s after {victim} was killed: {self.logs()}"
            )
            time.sleep(0.005)

    def kill(self, victim: str) -> None:
        """kill -9 at a random moment soon after it did something, and starts it again."""
        self.wait_for_moves(victim)
        time.sleep(self.random.uniform(0, 0.15))
        process = self.processes[victim]
        assert process.popen.poll() is None, f"{victim} ended by itself: {process.output()}"
        process.kill()
        self.kills[victim] += 1
        process.start()

    def check_workers(self) -> None:
        for name in ("producer", "lessee"):
            assert self.processes[name].popen.poll() in (None, 0), f"{name} failed: {self.logs()}"

    def logs(self) -> str:
        return "\n".join(f"{name}: {self.processes[name].output()[-3000:]}" for name in ("producer", "lessee", "buffer"))

    def finish(self, title: str) -> str:
        """Lets the stream end after the present episode, checks all of it, and returns a line of counts."""
        (self.directory / "enough").touch()
        deadline = time.monotonic() + ENDS_WITHIN_S
        while any(self.processes[name].popen.poll() is None for name in ("producer", "lessee")):
            self.check_workers()
            assert time.monotonic() < deadline, f"the stream did not end within {ENDS_WITHIN_S} s: {self.logs()}"
            time.sleep(0.01)
        self.check_workers()
        lines = [json.loads(line) for line in (self.directory / "trained").read_text().splitlines()]
        with blocking(LedgerClient, self.processes["buffer"].address, timeout_s=20) as ledger:
            episodes = int(ledger.get_state(self.run_id, "episodes")[0])
            audit = ledger.audit(self.run_id)
        lost, twice = compare(lines, episodes)
        assert (lost, twice) == (Counter(), Counter())
        assert (list(audit.faults), list(audit.dead), list(audit.untrained)) == ([], [], [])
        assert (audit.optimizer_steps, audit.ended_episodes) == (len(lines), episodes)
        assert audit.ended_samples == sum(len(line["numbers"]) for line in lines)
        assert all(state.ended and state.relayed for state in audit.episodes), "only history is left in the store"
        return f"\n{title}: {self.counts(episodes, len(lines))}; 0 lost, 0 trained twice"

    def counts(self, episodes: int, steps: int) -> str:
        kills = ", ".join(f"{self.kills[name]} {name}" for name in sorted(self.kills)) or "none"
        leases = set((self.directory / "leases").read_text().splitlines())
        grants = (self.directory / "grants").read_text().splitlines()
        again = sum(not lease.endswith("-a1") for lease in leases)
        return (
            f"kills that hit: {kills}; {episodes * stream_plan.SAMPLES} samples, {steps} steps, {again} re-leases, "
            f"{len(grants) - len(set(grants))} re-issues, {time.monotonic() - self.began:.1f} s, seed {SEED}"
        )


def compare(lines: list[dict], episodes: int) -> tuple[Counter, Counter]:
    """(samples that are lost, samples that were trained too often), each by (episode, pass, number)."""
    trained: dict[tuple[int, int], Counter] = defaultdict(Counter)
    for line in lines:
        trained[tuple(line["key"][:2])].update(line["numbers"])
    lost, twice = Counter(), Counter()
    for episode in range(episodes):
        for pass_index in range(stream_plan.passes(episode)):
            expected, found = stream_plan.trains(episode), trained.pop((episode, pass_index), Counter())
            lost.update({(episode, pass_index, number): count for number, count in (expected - found).items()})
            twice.update({(episode, pass_index, number): count for number, count in (found - expected).items()})
    assert not trained, f"passes that do not exist were trained: {sorted(trained)}"
    return lost, twice
