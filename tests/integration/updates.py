"""What tests of weight updates share: other weights, and how far a replica is from a model."""

import copy

import numpy as np
import torch
from rollout_side import collect

from baton.clients import RolloutClient
from baton.clients.rollout import Prompt, SamplingParams

PROMPT = [5, 6, 7, 6]


def changed(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The same model with other weights throughout."""
    other, random = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return other


async def difference(rollout: RolloutClient, model: torch.nn.Module, version: int) -> float:
    """The largest one of log-probabilities between what the replica samples and this model, by transformers."""
    stream = rollout.generate(
        [Prompt("g", token_ids=PROMPT)], sampling=SamplingParams(temperature=0.0, max_new_tokens=16), exact_version=version
    )
    samples = (await collect(stream))["g"].samples
    tokens = torch.tensor([*PROMPT, *samples.response_ids.values.tolist()])
    with torch.no_grad():
        logprobs = model(tokens[None]).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
    expected = logprobs.gather(1, tokens[len(PROMPT) :, None])[:, 0].numpy()
    return float(np.abs(expected - samples.model_logprobs.values).max())


async def next_version(rollout: RolloutClient) -> int:
    return (await rollout.get_status()).policy_version + 1
