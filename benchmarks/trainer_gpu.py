"""What the trainer makes of one GPU: tokens/s, TFLOP/s and memory of an update of Qwen3-0.6B's shape, and of transformers'.

    python benchmarks/trainer_gpu.py [--out DIRECTORY] [--lengths 1024,4096,16384] [--tiny]

`--tiny` runs the same code on a small model and short sequences, on whatever device there is.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import conclude, note, rounded

from baton.samples import Ragged, Samples

ROOT = Path(__file__).resolve().parents[1]
GOAL = 0.45
"""Share of the card's matrix rate, at sequences of GOAL_LENGTH tokens."""
GOAL_LENGTH = 4096
LIMIT_S = 265
"""Of all parts together; what a part has measured by then is kept."""
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "vocab_size": 515, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
PROMPT = 32
"""Tokens of each sample that are not predicted."""


def make_samples(shape: dict[str, Any], count: int, length: int, *, group: int = 1, prompt: int = PROMPT) -> Samples:
    """`count` samples that feed `length` tokens each; every `group` of them share a prompt."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(5, shape["vocab_size"], prompt) for _ in range(count // group)]
    return Samples(
        sample_ids=[str(i) for i in range(count)],
        prompt_ids=Ragged.of([prompts[i // group] for i in range(count)], np.int32),
        response_ids=Ragged.of([rng.integers(5, shape["vocab_size"], length + 1 - prompt) for _ in range(count)], np.int32),
    )


def flops(shape: dict[str, Any], samples: Samples) -> float:
    """Of a forward and backward over the samples, each computed by itself: 6 for every weight of a layer and token, 6 for
    every weight of the head and predicted token, and 6 * layers * heads * head size * length^2 for causal attention
    (12, halved). What is computed a second time is not counted."""
    attention = shape["num_attention_heads"] * shape["head_dim"]
    key_value = shape["num_key_value_heads"] * shape["head_dim"]
    hidden, layers = shape["hidden_size"], shape["num_hidden_layers"]
    layer = hidden * (2 * attention + 2 * key_value + 3 * shape["intermediate_size"])
    lengths = samples.token_counts().astype(np.float64) - 1
    head = 6 * shape["vocab_size"] * hidden * float(samples.response_ids.lengths.sum())
    return float(6 * layers * layer * lengths.sum() + head + 6 * layers * attention * (lengths**2).sum())


def timed(work: Callable[[], Any], repeats: int = 10) -> float:
    """Median seconds of `work` on the device, after two warm-up runs."""
    cuda, seconds = torch.cuda.is_available(), []
    for number in range(repeats + 2):
        if cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        if number >= 2:
            seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def matrix_rate(size: int, device: str) -> float:
    """FLOP/s of a square bfloat16 matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / timed(lambda: a @ b, 20)


def step_speed(step: Callable[[], None], shape: dict[str, Any], samples: Samples, repeats: int) -> dict[str, float]:
    """Speed and memory of an update on the samples; the first two are left out."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = timed(step, repeats)
    tokens = float(samples.token_counts().sum())
    answer = {
        "step_s": rounded(seconds), "tokens_per_s": rounded(tokens / seconds),
        "tflops": rounded(flops(shape, samples) / seconds / 1e12),
    }  # fmt: skip
    if cuda:
        answer["peak_gib"] = rounded(torch.cuda.max_memory_allocated() / 2**30)
    return answer


def attempt(results: dict[str, Any], name: str, work: Callable[[], Any]) -> None:
    """Stores what `work` returns, or the last line of its error; a case that fails does not stop the others."""
    started = time.perf_counter()
    try:
        results[name] = work()
    except Exception as error:
        traceback.print_exc()
        results[name] = f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    note(f"{name} ({time.perf_counter() - started:.1f} s): {results[name]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "bench-trainer-gpu")))
    parser.add_argument("--lengths", default="1024,4096,16384")
    parser.add_argument("--tokens", type=int, default=65536, help="of one update")
    parser.add_argument("--micro-tokens", type=int, default=16384, help="of one forward and backward")
    parser.add_argument("--parts", default="baton,transformers", help="and kernels")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        options.lengths, options.tokens, options.micro_tokens = "64,128", 512, 256
    options.out.mkdir(parents=True, exist_ok=True)
    shape, merged, deadline = "tiny" if options.tiny else "qwen3-0.6b", {}, time.monotonic() + options.limit_s
    with tempfile.TemporaryDirectory() as directory:
        made = subprocess.run(
            [sys.executable, str(ROOT / "benchmarks/trainer_gpu_sides.py"), "make", shape, directory, "{}"], timeout=LIMIT_S
        )
        for part in options.parts.split(",") if made.returncode == 0 else ():
            result = options.out / f"{part}.json"
            arguments = {
                "lengths": [int(length) for length in options.lengths.split(",")], "tokens": options.tokens,
                "micro_tokens": options.micro_tokens, "result": str(result), "out": str(options.out),
            }  # fmt: skip
            command = [sys.executable, str(ROOT / "benchmarks/trainer_gpu_sides.py"), part, shape, directory]
            started = time.monotonic()
            try:
                subprocess.run([*command, json.dumps(arguments)], timeout=max(deadline - started, 1))
            except subprocess.TimeoutExpired:
                note(f"{part} did not finish within the {options.limit_s:.0f} s of all parts")
            note(f"{part} took {time.monotonic() - started:.0f} s")
            merged[part] = json.loads(result.read_text()) if result.exists() else "failed"
    speed = merged.get("baton", {})
    best = speed.get(f"length {GOAL_LENGTH}") if isinstance(speed, dict) else None
    share = best["tflops"] / speed["matrix_tflops"] if isinstance(best, dict) and "matrix_tflops" in speed else 0.0
    conclude("trainer-gpu", share, "of the card's matrix rate", goal=GOAL, at_least=True, parts=merged)


if __name__ == "__main__":
    main()
