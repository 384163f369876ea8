"""The sides of `trainer_gpu.py`, one process each. Not a benchmark by itself.

    python benchmarks/trainer_gpu_sides.py make|kernels|baton|transformers SHAPE MODEL_DIRECTORY ARGUMENTS_AS_JSON
"""

import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import rounded
from trainer_gpu import SHAPES, attempt, make_samples, matrix_rate, step_speed, timed

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Json = dict[str, Any]


def make(shape: Json, directory: Path, _: Json) -> Json:
    """A random model in bfloat16."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **shape), dtype=torch.bfloat16)
    model.save_pretrained(directory)
    return {}


def workload(shape: Json, arguments: Json, length: int) -> tuple[Any, list[range]]:
    """The samples of an update, and which of them each micro-batch has."""
    count, each = arguments["tokens"] // length, max(arguments["micro_tokens"] // length, 1)
    return make_samples(shape, count, length), [range(i, i + each) for i in range(0, count, each)]


def start_engine(directory: Path, **options: Any) -> Any:
    """An engine on one rank."""
    from baton.config.trainable import TrainableConfig
    from services.trainer.megatron.engine import Engine

    config = TrainableConfig(dtype="bfloat16", lr=1e-6, use_distributed_optimizer=True, **options)
    start_engine.config = config
    return Engine(config, start_engine.layout, directory, total_steps=100)


def update(engine: Any, packed: list[Any], tokens: int) -> Callable[[], None]:
    """One update with a policy-gradient loss."""

    def loss(_: int, scores: Any) -> tuple[torch.Tensor, Json]:
        ratio_N = (scores.logprobs_N - scores.logprobs_N.detach()).exp()
        return -ratio_N.sum() / tokens, {"entropy": scores.entropies_N.sum()}

    def step() -> None:
        engine.forward_backward(packed, loss)
        engine.step()

    return step


def baton(shape: Json, directory: Path, arguments: Json) -> Json:
    """Our engine's updates: plain at each length, with a shared prompt, with recompute; and profiles."""
    from services.trainer.megatron.parallel import Layout

    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    start_engine.layout = Layout.start(tensor=1, pipeline=1, device="auto", timeout_s=300, seed=0)
    results: Json = {"device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu", "torch": torch.__version__}
    results["matrix_tflops"] = rounded(matrix_rate(8192 if DEVICE == "cuda" else 256, DEVICE) / 1e12)
    plain(results, shape, directory, arguments)
    recomputed(results, shape, directory, arguments)
    return results


def case(results: Json, engine: Any, samples: Any, cuts: list[range], shape: Json, share: bool = False) -> Json:
    """Speed and memory of an update."""
    from services.trainer.packing import pack

    packed = [pack(samples.take(cut), share_prefix=share) for cut in cuts]
    answer = step_speed(update(engine, packed, int(samples.response_ids.lengths.sum())), shape, samples, 3)
    answer["share_of_rate"] = rounded(answer["tflops"] / results["matrix_tflops"])
    answer["computed_tokens"] = sum(len(batch.tokens_T) for batch in packed)
    if DEVICE == "cuda":
        largest = max(len(batch.tokens_T) for batch in packed)
        between_updates = torch.cuda.memory_allocated()  # weights, gradients, the optimizer's state
        passing = answer["peak_gib"] * 2**30 - between_updates
        answer["kib_per_token"] = rounded(passing / largest / 1024)
        answer["estimate"] = estimated(engine, largest, between_updates, passing)
    return answer


def estimated(engine: Any, tokens: int, lasting: float, passing: float) -> Json:
    """What the trainer's preflight says of a micro-batch of so many tokens, in GiB, and its ratio to what was measured: of
    what is there between updates, and of what comes on top while one is computed."""
    from services.trainer.megatron.fusion import can_fuse
    from services.trainer.megatron.memory import memory_of

    memory = memory_of(
        engine.shape, start_engine.config, engine.layout, engine.head, tokens=tokens, fused=DEVICE == "cuda" and can_fuse()
    )
    return {
        "lasting_gib": rounded(memory.lasting / 2**30), "lasting_over_measured": rounded(memory.lasting / lasting),
        "passing_gib": rounded(memory.passing / 2**30), "passing_over_measured": rounded(memory.passing / passing),
    }  # fmt: skip


def plain(results: Json, shape: Json, directory: Path, arguments: Json) -> None:
    """Without recompute: every length, unequal ones, groups of 8 with prompts of three quarters, phases and kernels."""
    engine, lengths = start_engine(directory), arguments["lengths"]
    goal = lengths[len(lengths) // 2]

    def keep(name: str, measure: Callable[[], Json]) -> None:
        attempt(results, name, measure)
        Path(arguments["result"]).write_text(json.dumps(results, indent=1))

    for length in (goal, *(length for length in lengths if length != goal)):
        keep(f"length {length}", lambda n=length: case(results, engine, *workload(shape, arguments, n), shape))
    keep("groups of 8, shared", lambda: groups(results, engine, shape, arguments, share=True))
    keep("groups of 8, apart", lambda: groups(results, engine, shape, arguments, share=False))
    keep(f"lengths {goal // 4} to {goal}", lambda: unequal(results, engine, shape, arguments, goal))
    keep(f"parts of a step at {goal}", lambda: phases(engine, *workload(shape, arguments, goal)))
    keep(f"profile {goal}", lambda: profile(engine, shape, arguments, goal))


def recomputed(results: Json, shape: Json, directory: Path, arguments: Json) -> None:
    """Every length with full recompute, all of an update's tokens in one micro-batch; and selective, in usual ones."""

    def keep(name: str, samples: Any, cuts: list[range]) -> None:
        attempt(results, name, lambda: case(results, engine, samples, cuts, shape))
        Path(arguments["result"]).write_text(json.dumps(results, indent=1))

    engine = start_engine(directory, recompute_granularity="full")
    for length in arguments["lengths"]:
        samples, _ = workload(shape, arguments, length)
        keep(f"recompute, length {length}", samples, [range(len(samples))])
    engine = None
    engine = start_engine(directory, recompute_granularity="selective")
    goal = arguments["lengths"][len(arguments["lengths"]) // 2]
    keep(f"selective recompute, length {goal}", *workload(shape, arguments, goal))


def cuts_of(samples: Any, tokens: int, *, group: int, share: bool) -> list[range]:
    """The samples of each micro-batch, as the trainer merges whole groups into micro-batches of so many tokens."""
    from baton.clients.buffer import MicroBatch
    from services.trainer.merging import merged

    pieces = [samples.take(range(i, min(i + group, len(samples)))) for i in range(0, len(samples), group)]
    batches = [MicroBatch("", piece, np.zeros(len(piece), bool)) for piece in pieces]
    ends = np.cumsum([0, *(len(batch.samples) for batch in merged(batches, tokens, share_prefix=share))])
    return [range(first, end) for first, end in itertools.pairwise(ends)]


def groups(results: Json, engine: Any, shape: Json, arguments: Json, *, share: bool) -> Json:
    """Groups of 8 samples of the first length, three quarters of which are their prompt."""
    length = arguments["lengths"][0]
    samples = make_samples(shape, arguments["tokens"] // length, length, group=8, prompt=length * 3 // 4)
    cuts = cuts_of(samples, arguments["micro_tokens"], group=8, share=share)
    return case(results, engine, samples, cuts, shape, share)


def unequal(results: Json, engine: Any, shape: Json, arguments: Json, longest: int) -> Json:
    """Samples of a quarter of `longest` to `longest` tokens."""
    lengths = np.random.default_rng(1).integers(longest // 4, longest, 4 * arguments["tokens"] // longest)
    parts = [make_samples(shape, 1, int(length)) for length in lengths]
    samples = type(parts[0]).concat(parts)
    return case(results, engine, samples, cuts_of(samples, arguments["micro_tokens"], group=1, share=False), shape)


def phases(engine: Any, samples: Any, cuts: list[range]) -> Json:
    """Seconds of the forward alone (scoring), of forward and backward, and of the optimizer."""
    from services.trainer.packing import pack

    packed = [pack(samples.take(cut), share_prefix=False) for cut in cuts]

    def loss(_: int, scores: Any) -> tuple[torch.Tensor, None]:
        return scores.logprobs_N.mean(), None

    return {
        "score_s": rounded(timed(lambda: engine.score(packed), 3)),
        "forward_backward_s": rounded(timed(lambda: engine.forward_backward(packed, loss), 3)),
        "optimizer_s": rounded(timed(engine.step, 3)),
    }


def profile(engine: Any, shape: Json, arguments: Json, length: int) -> Json:
    """The kernels that take longest in one micro-batch and an update, as a table in a file; sums by kind here."""
    from torch.profiler import ProfilerActivity

    from services.trainer.packing import pack

    samples, cuts = workload(shape, arguments, length)
    step = update(engine, [pack(samples.take(cuts[0]), share_prefix=False)], len(samples))
    step()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if DEVICE == "cuda" else [])
    with torch.profiler.profile(activities=activities) as recorded:
        step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
    averages = recorded.key_averages()
    field = "self_device_time_total" if DEVICE == "cuda" else "self_cpu_time_total"
    table = averages.table(sort_by=field, row_limit=40, max_name_column_width=110)
    kernels = sorted(
        (event for event in averages if "CUDA" in str(event.device_type)), key=lambda event: -event.self_device_time_total
    )
    lines = [f"{e.self_device_time_total / 1e3:10.3f} ms {e.count:6d} x  {e.key[:160]}" for e in kernels[:60]]
    (Path(arguments["out"]) / f"profile_{length}.txt").write_text("\n".join([*lines, "", table]))
    groups: dict[str, float] = {}
    for event in kernels:
        groups[kind(event.key)] = groups.get(kind(event.key), 0.0) + event.self_device_time_total / 1e3
    return {name: rounded(value) for name, value in sorted(groups.items(), key=lambda item: -item[1])}


def kind(kernel: str) -> str:
    """A kernel's group, by its name."""
    names = {
        "flash": "attention", "fmha": "attention", "cudnn": "attention", "gemm": "matrix", "nvjet": "matrix",
        "cutlass": "matrix", "triton": "fused pointwise", "multi_tensor": "optimizer", "adam": "optimizer",
        "memcpy": "copies", "memset": "copies", "index": "index", "embedding": "index", "elementwise": "eager pointwise",
        "reduce": "reductions",
    }  # fmt: skip
    return next((group for part, group in names.items() if part in kernel.lower()), "other")


def transformers(shape: Json, directory: Path, arguments: Json) -> Json:
    """transformers' model, SDPA, bfloat16 weights, fused AdamW, gradient checkpointing."""
    from transformers import AutoModelForCausalLM

    results: Json = {}
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, attn_implementation="sdpa").to(DEVICE)
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def case(length: int) -> Json:  # the micro-batches are those of our side
        samples, cuts = workload(shape, arguments, length)
        ids = torch.stack([
            torch.cat([torch.from_numpy(row) for row in rows])
            for rows in zip(samples.prompt_ids.rows(), samples.response_ids.rows(), strict=True)
        ]).to(DEVICE, torch.int64)  # fmt: skip
        first, tokens = len(samples.prompt_ids.rows()[0]), float(samples.response_ids.lengths.sum())

        def step() -> None:
            for cut in cuts:
                rows = ids[cut.start : cut.stop]
                logits = model(rows[:, :-1], logits_to_keep=rows.shape[1] - first).logits
                logprobs_N = -torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1).float(), rows[:, first:].flatten(), reduction="none"
                )
                (-(logprobs_N - logprobs_N.detach()).exp().sum() / tokens).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return step_speed(step, shape, samples, 2)

    model.gradient_checkpointing_enable()
    model.train()
    for length in arguments["lengths"]:
        attempt(results, f"length {length}, with checkpointing", lambda n=length: case(n))
        Path(arguments["result"]).write_text(json.dumps(results, indent=1))
    return results


def main() -> None:
    side, shape, directory, arguments = sys.argv[1], SHAPES[sys.argv[2]], Path(sys.argv[3]), json.loads(sys.argv[4])
    sides: dict[str, Callable[..., Json]] = {"make": make, "baton": baton, "transformers": transformers}
    if side == "kernels":
        from trainer_gpu_kernels import kernels as work
    else:
        work = sides[side]
    results = work(shape, directory, arguments)
    if "result" in arguments:
        Path(arguments["result"]).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
