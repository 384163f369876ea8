"""`python varlen_on_cuda.py`: the flash kernels over packed rows against masked attention in float64, as one JSON line."""

import json

import torch

from services.trainer.megatron.varlen import Parts, varlen_attention
from services.trainer.packing import Segment, segment_mask

ROWS = {
    "plain": [(30, (50,)), (1, (7,)), (200, (0,))],
    "shared": [(40, (20, 1, 33)), (5, (6, 0, 6)), (300, (150, 2))],
    "both": [(64, (64,)), (129, (7, 7, 7, 7)), (3, (1,)), (2, (0, 0)), (17, (130, 64))],
}
"""(prompt, responses) of each segment."""


def segments_of(row: list[tuple[int, tuple[int, ...]]]) -> tuple[Segment, ...]:
    """The segments end to end."""
    made, start = [], 0
    for prompt, branches in row:
        made.append(Segment(start, prompt, branches))
        start += made[-1].length
    return tuple(made)


def expected(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: tuple[Segment, ...]) -> torch.Tensor:
    """Attention under the segments' masks, in float64."""
    repeats, outputs = q.shape[1] // k.shape[1], []
    k, v = (x.repeat_interleave(repeats, 1) for x in (k, v))
    for segment in segments:
        part = slice(segment.start, segment.start + segment.length)
        scores = torch.einsum("qhd,khd->hqk", q[part], k[part]) / q.shape[-1] ** 0.5
        mask = segment_mask(segment, q.device)
        if mask is None:
            mask = torch.ones(segment.length, segment.length, dtype=torch.bool, device=q.device).tril()
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, v[part]))
    return torch.cat(outputs)


def main() -> None:
    torch.manual_seed(0)
    answer = {}
    for name, row in ROWS.items():
        segments = segments_of(row)
        tokens = segments[-1].start + segments[-1].length
        leaves = [torch.randn(tokens, heads, 128, device="cuda", dtype=torch.bfloat16) for heads in (8, 2, 2)]
        exact = [leaf.double().requires_grad_() for leaf in leaves]
        ours = [leaf.requires_grad_() for leaf in leaves]
        gradient = torch.randn(tokens, 8, 128, device="cuda", dtype=torch.bfloat16)
        output = varlen_attention(*ours, Parts.of(segments, torch.device("cuda")), None)
        reference = expected(*exact, segments)
        pairs = [(output.double(), reference)]
        pairs += zip(
            (g.double() for g in torch.autograd.grad(output, ours, gradient)),
            torch.autograd.grad(reference, exact, gradient.double()), strict=True,
        )  # fmt: skip
        answer[name] = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
