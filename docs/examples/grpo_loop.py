"""A whole GRPO loop from the SDK alone: no coordinator, no buffer, and your own code between the calls.

    baton up docs/examples/grpo_loop.yaml
    python docs/examples/grpo_loop.py --rollout HOST:PORT --trainer HOST:PORT      # `baton status` tells the addresses

One iteration: the rollout answers prompts, this script scores the answers, the trainer accumulates the gradient of GRPO's
loss and updates its weights, and the rollout gets these before the next iteration.
"""

import argparse
import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from baton.clients import LoopClient, RolloutClient, TrainerClient
from baton.clients.rollout import Generation, Prompt, SamplingParams
from baton.samples import RewardStatus, Samples
from baton.weights import WeightPublisher

GROUP = 8
"""Answers to one prompt, which are compared with each other."""


def reward(text: str) -> float:
    """How many of the numbers in an answer are even; an answer without a number is worth nothing."""
    numbers = re.findall(r"\d+", text)
    return sum(int(number) % 2 == 0 for number in numbers) / len(numbers) if numbers else 0.0


def scored(group: Generation) -> Samples:
    """One group's samples with rewards and the statistics that its advantages are made of."""
    size = len(group.texts)
    rewards = np.array([reward(text) for text in group.texts], np.float32)
    return replace(
        group.samples,
        rewards=rewards,
        reward_status=np.full(size, RewardStatus.VALUE, np.uint8),
        group_reward_mean=np.full(size, rewards.mean(), np.float32),
        group_reward_std=np.full(size, rewards.std(), np.float32),
        group_sizes=np.full(size, size, np.int32),
    )


async def roll_out(rollout: RolloutClient, prompts: Sequence[str], version: int, tokens: int) -> Samples:
    """Scored answers to all prompts by exactly these weights."""
    asked = [Prompt(f"p{i}", chat=[{"role": "user", "content": text}]) for i, text in enumerate(prompts)]
    sampling = SamplingParams(n=GROUP, temperature=1.0, max_new_tokens=tokens)
    groups = [scored(group) async for group in rollout.generate(asked, sampling=sampling, exact_version=version)]
    return Samples.concat(groups)


async def train(loop: LoopClient, samples: Samples, learning_rate: float) -> tuple[float, float]:
    """One update on two halves of the samples. Returns the loss and the gradient's norm."""
    loss, halves = {"name": "grpo", "clip_ratio_high": 0.28}, np.array_split(np.arange(len(samples)), 2)
    losses = []
    for half in halves:  # as many calls as you like: gradients add up until the update
        part = samples.take(half)
        done = await loop.forward_backward(part, loss=loss, scale=len(part) / len(samples))
        losses.append(done.metrics["loss"] * len(part) / len(samples))
    update = await loop.optim_step(learning_rate=learning_rate)
    return sum(losses), update.grad_norm


async def main(options: argparse.Namespace) -> None:
    async with (
        RolloutClient(options.rollout) as rollout,
        TrainerClient(options.trainer) as trainer,
        LoopClient(options.trainer) as loop,
    ):
        publisher = WeightPublisher(trainer, [rollout])
        version = (await rollout.get_status()).policy_version + 1
        await publisher.publish(version)
        for iteration in range(options.iterations):
            prompts = [f"Write some even numbers, all above {10 * iteration + i}." for i in range(options.prompts)]
            samples = await roll_out(rollout, prompts, version, options.tokens)
            loss, norm = await train(loop, samples, options.learning_rate)
            version += 1
            await publisher.publish(version)
            mean = samples.rewards.mean()
            print(f"iteration {iteration}: reward {mean:.3f}, loss {loss:.4f}, grad norm {norm:.3f}", flush=True)
        await trainer.export_model(options.export)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="GRPO, written as a loop of your own.")
    parser.add_argument("--rollout", required=True, metavar="HOST:PORT")
    parser.add_argument("--trainer", required=True, metavar="HOST:PORT")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32, help="most tokens of an answer")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--export", default="grpo-loop-export", help="directory of the trained model")
    asyncio.run(main(parser.parse_args()))
