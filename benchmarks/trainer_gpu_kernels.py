"""The parts of an update by themselves, for `trainer_gpu.py`: which attention kernel, block size and fusion is fastest."""

from pathlib import Path
from typing import Any

import torch
from report import rounded
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from trainer_gpu import attempt, timed

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Json = dict[str, Any]


def kernels(shape: Json, _: Path, arguments: Json) -> Json:
    """All of them; each in milliseconds of forward and backward over one micro-batch."""
    results: Json = {}
    tokens = arguments["micro_tokens"]
    attempt(results, "products", lambda: products(shape, tokens))
    for length in arguments["lengths"]:
        attempt(results, f"attention {length}", lambda n=length: attention(shape, tokens, n))
    attempt(results, "head", lambda: head(shape, tokens))
    attempt(results, "pointwise", lambda: pointwise(shape, tokens))
    return results


def both(function: Any, *inputs: torch.Tensor) -> float:
    """Milliseconds of forward and backward."""
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in inputs]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    gradient = torch.randn_like(function(*leaves))

    def work() -> None:
        torch.autograd.grad(function(*leaves), wanted, gradient)

    return rounded(timed(work) * 1e3)


def random(*sizes: int) -> torch.Tensor:
    return torch.randn(*sizes, device=DEVICE, dtype=torch.bfloat16)


def products(shape: Json, tokens: int) -> Json:
    """Each linear layer: (ms, TFLOP/s), and a forward of the head in bfloat16 with float32 output if torch has it."""
    hidden, ffn, size = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    heads, groups = shape["num_attention_heads"], shape["num_key_value_heads"]
    answer: Json = {}
    for name, (columns, rows) in {
        "qkv": (hidden, (heads + 2 * groups) * size), "proj": (heads * size, hidden), "fc1": (hidden, 2 * ffn),
        "fc2": (ffn, hidden),
    }.items():  # fmt: skip
        x, weight = random(tokens, columns), random(rows, columns)
        milliseconds = both(lambda x, w: x @ w.t(), x, weight)
        answer[name] = (milliseconds, rounded(6 * tokens * columns * rows / milliseconds / 1e9))
    x, weight = random(tokens, hidden), random(4096, hidden)
    answer["head block, bfloat16 out"] = rounded(timed(lambda: x @ weight.t()) * 1e3)
    attempt(answer, "head block, float32 out", lambda: rounded(
        timed(lambda: torch.mm(x, weight.t(), out_dtype=torch.float32)) * 1e3
    ))  # fmt: skip
    return answer


def attention(shape: Json, tokens: int, length: int) -> Json:
    """Kernels over `tokens` in causal sequences of `length`: (ms, TFLOP/s counted causally)."""
    from services.trainer.megatron.varlen import Parts, varlen_attention
    from services.trainer.packing import Segment

    heads, groups, size = shape["num_attention_heads"], shape["num_key_value_heads"], shape["head_dim"]
    count = max(tokens // length, 1)
    q, k, v = (random(count * length, n, size) for n in (heads, groups, groups))
    work = 6 * heads * size * count * length**2
    answer: Json = {}

    def keep(name: str, function: Any) -> None:
        def measure() -> tuple[float, float]:
            milliseconds = both(function, q, k, v)
            return milliseconds, rounded(work / milliseconds / 1e9)

        attempt(answer, name, measure)

    plain = Parts.of(tuple(Segment(i * length, 32, (length - 32,)) for i in range(count)), torch.device(DEVICE))
    if DEVICE == "cuda":
        keep("flash, unequal lengths", lambda q, k, v: varlen_attention(q, k, v, plain, None))
        keep("cudnn, unequal lengths", lambda q, k, v: cudnn_varlen(q, k, v, plain))
    backends = {"default": None, "flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    for name, backend in backends.items():
        for expanded in (False, True):
            label = f"sdpa {name}{', expanded heads' if expanded else ''}"
            keep(label, lambda q, k, v, b=backend, e=expanded: batched(q, k, v, count, b, e))
    return answer


def batched(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, count: int, backend: SDPBackend | None, expanded: bool
) -> torch.Tensor:
    """SDPA over sequences of equal length."""
    if expanded:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    q, k, v = (x.unflatten(0, (count, -1)).transpose(1, 2) for x in (q, k, v))
    if backend is None:
        output = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=not expanded)
    else:
        with sdpa_kernel(backend):
            output = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=not expanded)
    return output.transpose(1, 2).flatten(0, 1)


class _Cudnn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, own: Any) -> torch.Tensor:
        lengths = (own.offsets, own.offsets, own.longest, own.longest)
        made = torch.ops.aten._cudnn_attention_forward(q, k, v, None, *lengths, True, 0.0, True, False)
        output, lse, seed, offset = made[0], made[1], made[6], made[7]
        ctx.save_for_backward(q, k, v, output, lse, seed, offset)
        ctx.own = own
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, output, lse, seed, offset = ctx.saved_tensors
        own = ctx.own
        lengths = (own.offsets, own.offsets, own.longest, own.longest)
        made = torch.ops.aten._cudnn_attention_backward(
            grad, q, k, v, output, lse, seed, offset, None, *lengths, 0.0, True
        )
        return *made, None


def cudnn_varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, parts: Any) -> torch.Tensor:
    """cuDNN's kernel on sequences of unequal length, with expanded heads."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return _Cudnn.apply(q, k, v, parts.own)


def head(shape: Json, tokens: int) -> Json:
    """The head over one micro-batch, (ms, peak GiB): ours by block size, and cross entropy over all logits."""
    from services.trainer.megatron.logprobs import Split, vocab_parallel_logprobs

    rows, hidden = shape["vocab_size"], shape["hidden_size"]
    x, weight = random(tokens, hidden), random(rows, hidden) * 0.02
    targets, temperatures = torch.randint(rows, (tokens,), device=DEVICE), torch.ones(tokens, device=DEVICE)
    answer: Json = {}

    def measured(function: Any) -> tuple[float, float]:
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        milliseconds = both(function, x, weight)
        return milliseconds, rounded(torch.cuda.max_memory_allocated() / 2**30) if DEVICE == "cuda" else 0.0

    for mebibytes in (64, 128, 256, 512, 1024):
        attempt(answer, f"blocks of {mebibytes} MiB", lambda size=mebibytes << 20: measured(
            lambda x, w: vocab_parallel_logprobs(x, w, targets, temperatures, Split(rows), size)[0]
        ))  # fmt: skip
    attempt(answer, "all logits", lambda: measured(
        lambda x, w: torch.nn.functional.cross_entropy((x @ w.t()).float(), targets, reduction="none")
    ))  # fmt: skip
    return answer


def pointwise(shape: Json, tokens: int) -> Json:
    """Ours (compiled on CUDA) and what torch or Megatron runs without it."""
    from services.trainer.megatron.layers import query_key_value
    from services.trainer.megatron.layers import rms_norm as ours

    hidden, size = shape["hidden_size"], shape["head_dim"]
    heads, groups = shape["num_attention_heads"], shape["num_key_value_heads"]
    x, weight, small = random(tokens, 1, hidden), random(hidden), random(size)
    mixed = random(tokens, 1, (heads + 2 * groups) * size)
    cos, sin = random(tokens, size // 2), random(tokens, size // 2)
    layout = (groups, heads // groups, size)

    def joined(function: Any) -> Any:
        return lambda mixed, w: torch.cat(function(mixed, (w, w), 1e-6, layout, cos, sin), dim=1)

    answer: Json = {}
    attempt(answer, "norm, ours", lambda: both(lambda x, w: ours(x, w, 1e-6), x, weight))
    attempt(answer, "norm, torch", lambda: both(lambda x, w: rms_norm(x, (hidden,), w, 1e-6), x, weight))
    attempt(answer, "query, key, value, ours", lambda: both(joined(query_key_value), mixed, small))
    attempt(answer, "query, key, value, eager", lambda: both(joined(query_key_value.__wrapped__), mixed, small))
    attempt(answer, "swiglu, Megatron's", lambda: swiglu(random(tokens, 1, 2 * shape["intermediate_size"])))
    return answer


def swiglu(x: torch.Tensor) -> float:
    """Megatron's, compiled."""
    from megatron.core.fusions.fused_bias_swiglu import bias_swiglu_impl

    return both(lambda x: bias_swiglu_impl(x, None), x)
