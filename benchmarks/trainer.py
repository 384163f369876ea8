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
    """Both sides' tokens/s on a batch, turn by turn, and their ratio."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    norms: dict[str, float] = {}
    for number in range(WARM_UP + ROUNDS):
        for name, side in sides.items():
            answer = side.update(batch)
            norms.setdefault(name, answer["grad_norm"])
            if number >= WARM_UP:
                seconds[name].append(answer["seconds"])
        note(f"{batch}: " + ", ".join(f"{name} {taken[-1]:.2f} s" for name, taken in seconds.items() if taken))
    by_round = [theirs / ours for ours, theirs in zip(seconds["baton"], seconds["transformers"], strict=True)]
    ratio = spread(by_round)
    speeds = {name: spread([tokens / s for s in taken]) for name, taken in seconds.items()}
    return {
        "ratio": ratio, "goal": goal, "met": ratio["median"] >= goal, "tokens": tokens, "tokens_per_s": speeds,
        "first_grad_norm": {name: rounded(norm) for name, norm in norms.items()},
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
