"""The distribution that a sampling option asks for, from a reference's logits; and answers of a replica in order."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rollout_side import collect

from baton.clients import RolloutClient
from baton.clients.rollout import Generation, Prompt, SamplingParams
from baton.samples import Samples

Logits = Callable[..., np.ndarray]
"""Rows of token ids -> the raw model's logits after each of them: float64 [rows, tokens, vocabulary]."""


def reference(model: Path) -> Logits:
    """By transformers, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    def forward(*rows: list[int]) -> np.ndarray:
        with torch.no_grad():
            return loaded(torch.tensor(rows)).logits.double().numpy()

    return forward


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def distribution(
    logits: np.ndarray, prompt: list[int], response: list[int], *, temperature: float = 1.0, top_p: float = 1.0,
    top_k: int = -1, presence_penalty: float = 0.0, frequency_penalty: float = 0.0, repetition_penalty: float = 1.0,
) -> np.ndarray:  # fmt: skip
    """Log-probabilities [vocabulary] of the token after prompt and response, from the raw model's logits there."""
    logits = logits.copy()
    seen = sorted({*prompt, *response})
    logits[seen] = np.where(logits[seen] > 0, logits[seen] / repetition_penalty, logits[seen] * repetition_penalty)
    for token, count in Counter(response).items():
        logits[token] -= frequency_penalty * count + presence_penalty
    logits /= temperature
    if top_k > 0:
        logits[logits < np.sort(logits)[-top_k]] = -np.inf
    order = np.argsort(-logits)
    before = np.cumsum(np.exp(log_softmax(logits)[order])) - np.exp(log_softmax(logits)[order])
    logits[order[before >= top_p]] = -np.inf
    return log_softmax(logits)


def check_described(samples: Samples, logits: Logits, tolerance: float, **sampling: float) -> None:
    """Each token's log-probabilities are those of such a sampling: of what was drawn from, of the raw model, and of its
    whole distribution at that temperature."""
    temperature = sampling.get("temperature", 1.0)
    columns = samples.prompt_ids, samples.response_ids, samples.rollout_logprobs, samples.model_logprobs, samples.uncut()
    for prompt, response, *found in zip(*(column.rows() for column in columns), strict=True):
        prompt, tokens = prompt.tolist(), response.tolist()
        [rows] = logits([*prompt, *tokens])
        for at, token in enumerate(tokens):
            here = rows[len(prompt) - 1 + at]
            drawn_from = distribution(here, prompt, tokens[:at], **sampling)
            expected = [one[token] for one in (drawn_from, log_softmax(here), log_softmax(here / temperature))]
            assert [column[at] for column in found] == pytest.approx(expected, abs=tolerance)


async def answers(rollout: RolloutClient, *prompts: list[int], evaluation: bool = False, **options: Any) -> list[Generation]:
    """One group for each prompt, in their order."""
    asked = [Prompt(str(at), token_ids=prompt) for at, prompt in enumerate(prompts)]
    stream = rollout.generate(asked, sampling=SamplingParams(**options), evaluation=evaluation)
    groups = await collect(stream)
    return [groups[prompt.group_id] for prompt in asked]
