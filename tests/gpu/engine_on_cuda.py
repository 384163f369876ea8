"""Scores and trains one model with the trainer's engine on CUDA and prints what it measured as one JSON line.

    python engine_on_cuda.py MODEL_DIRECTORY DTYPE [--speed]

One process; transformers runs in it too, which CUDA allows (on CPU the engine redirects torch's CUDA functions).
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from baton.config.trainable import TrainableConfig
from baton.samples import Ragged, Samples
from services.trainer.megatron.parallel import Layout
from services.trainer.packing import pack


def make_samples(vocabulary: int, groups: int, group_size: int, prompt: int, response: int) -> Samples:
    """Groups with a common random prompt and random responses of `response` // 2 to `response` tokens."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(5, vocabulary, prompt) for _ in range(groups)]
    lengths = rng.integers(response // 2, response + 1, groups * group_size)
    return Samples(
        sample_ids=[str(i) for i in range(groups * group_size)],
        prompt_ids=Ragged.of([prompts[i // group_size] for i in range(groups * group_size)], np.int32),
        response_ids=Ragged.of([rng.integers(5, vocabulary, length) for length in lengths], np.int32),
    )


def reference(directory: Path, dtype: torch.dtype, samples: Samples) -> tuple[torch.Tensor, float]:
    """Log-probabilities [N] and the gradient norm of their negated mean, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).cuda()
    scores = []
    for prompt, response in zip(samples.prompt_ids.rows(), samples.response_ids.rows(), strict=True):
        ids = torch.tensor(np.concatenate([prompt, response])[None].astype(np.int64), device="cuda")
        logits = model(ids).logits.float()[0, len(prompt) - 1 : -1]
        scores.append(logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0])
    logprobs_N = torch.cat(scores)
    (-logprobs_N.mean()).backward()
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    return logprobs_N.detach(), float(norm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--speed", action="store_true")
    options = parser.parse_args()
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    layout = Layout.start(tensor=1, pipeline=1, device="cuda", timeout_s=300, seed=0)
    from services.trainer.megatron.engine import Engine

    engine = Engine(TrainableConfig(dtype=options.dtype, lr=1e-4), layout, options.model, total_steps=10)
    vocabulary = engine.shape.vocab_size
    samples = make_samples(vocabulary, groups=4, group_size=4, prompt=40, response=24)
    expected_N, expected_norm = reference(options.model, getattr(torch, options.dtype), samples)
    scored_N = torch.cat(engine.score([pack(samples)]))
    batches, tokens = [pack(samples)], len(expected_N)
    engine.forward_backward(batches, lambda _, scores: (-scores.logprobs_N.sum() / tokens, {}))
    norm = engine.step().grad_norm
    answer = {
        "device": torch.cuda.get_device_name(),
        "logprob_error_mean": float((scored_N - expected_N).abs().mean()),
        "logprob_error_max": float((scored_N - expected_N).abs().max()),
        "grad_norm": norm,
        "grad_norm_relative_error": abs(norm - expected_norm) / expected_norm,
    }
    if options.speed:
        answer |= speed(engine, vocabulary)
    print(json.dumps(answer))


def speed(engine: object, vocabulary: int) -> dict[str, float]:
    """Seconds of one whole step (forward, backward, update) on 64 samples, with and without shared prompts; medians of 5."""
    samples = make_samples(vocabulary, groups=8, group_size=8, prompt=512, response=256)
    answer = {"step_sample_tokens": float(samples.token_counts().sum())}
    for name, share in (("shared", True), ("unshared", False)):
        batches = [pack(samples.take(range(i, i + 8)), share_prefix=share) for i in range(0, 64, 8)]
        times = []
        for _ in range(6):
            torch.cuda.synchronize()
            started = time.perf_counter()
            engine.forward_backward(batches, lambda _, scores: (-scores.logprobs_N.mean() / 8, {}))
            engine.step()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        answer[f"step_s_{name}"] = float(np.median(times[1:]))
        answer[f"computed_tokens_{name}"] = float(sum(len(batch.tokens_T) for batch in batches))
    return answer


if __name__ == "__main__":
    main()
