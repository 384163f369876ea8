"""`make bench-trainer`: tokens/s of a GRPO update on this machine's CPU, over those of a plain transformers loop.

Both sides hold a model of SmolLM2-135M's shape in bfloat16 and take turns on the same batches; `trainer_cpu_sides.py` has
them. Takes about five minutes on two cores. `trainer_gpu.py` is the same question on a GPU.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from report import conclude, note, rounded, spread
from trainer_cpu_sides import batches

SIDES = Path(__file__).parent / "trainer_cpu_sides.py"
GOALS = {"mixed": 1.3, "groups": 2.0}
"""Of our tokens/s over transformers', by batch."""
ROUNDS, WARM_UP = 5, 1


class Side:
    """A process that makes updates when told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def update(self, batch: str) -> dict[str, float]:
        """Seconds and gradient norm of one update."""
        self._process.stdin.write(batch + "\n")
        self._process.stdin.flush()
        if not (line := self._process.stdout.readline()):
            raise SystemExit("a side of the benchmark ended; its message is above")
        return json.loads(line)


@contextmanager
def started(side: str, directory: Path) -> Iterator[Side]:
    """The side, which ends with the block."""
    command = [sys.executable, "-W", "ignore", str(SIDES), side, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Side(process)
        finally:
            process.stdin.close()
            process.terminate()


def compare(sides: dict[str, Side], batch: str, tokens: int, goal: float) -> dict[str, Any]:
    """Both sides' tokens/s on a batch, turn by turn, and their ratio; the ratio of the processor time that they took, too,
    which says more where other processes disturb."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for number in range(WARM_UP + ROUNDS):
        for name, side in sides.items():
            taken[name].append(side.update(batch))
        note(f"{batch}, round {number}: " + ", ".join(f"{name} {rows[-1]['seconds']:.2f} s" for name, rows in taken.items()))

    def column(name: str, field: str) -> list[float]:
        return [row[field] for row in taken[name][WARM_UP:]]

    def ratio(field: str) -> dict[str, float]:
        pairs = zip(column("baton", field), column("transformers", field), strict=True)
        return spread([theirs / ours for ours, theirs in pairs])

    found = ratio("seconds")
    return {
        "ratio": found, "goal": goal, "met": found["median"] >= goal, "processor_time_ratio": ratio("cpu_seconds"),
        "tokens": tokens,
        "tokens_per_s": {name: spread([tokens / seconds for seconds in column(name, "seconds")]) for name in sides},
        "first_grad_norm": {name: rounded(rows[0]["grad_norm"]) for name, rows in taken.items()},
    }  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        subprocess.run([sys.executable, str(SIDES), "make", name], check=True, timeout=300)
        sides = {side: stack.enter_context(started(side, directory)) for side in ("baton", "transformers")}
        parts = {
            batch: compare(sides, batch, int(samples.token_counts().sum()), GOALS[batch])
            for batch, samples in batches().items()
        }
    value = parts["mixed"]["ratio"]["median"]
    conclude("trainer", value, "our tokens/s / transformers'", goal=GOALS["mixed"], at_least=True, parts=parts)


if __name__ == "__main__":
    main()
