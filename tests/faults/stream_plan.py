"""What flows through these tests: episodes, groups and samples that follow from their numbers alone."""

from collections import Counter
from typing import Any

import numpy as np

from baton.samples import Ragged, Samples

EPISODES = 10
"""At least so many; a stream goes on with further ones until the test has done all that it does to it."""
GROUPS = 125
GROUP_SIZE = 4
SAMPLES = GROUPS * GROUP_SIZE
GLOBAL_BATCH, MICRO_BATCH, RANKS = 24, 6, 2
"""A pass over an episode's own samples has 21 steps, the last of them filled up."""

ISSUE_TIMEOUT_S = 0.3
LEASE_TIMEOUT_S = 0.3
LIFETIME_S = 800.0
"""A producer or a lessee that runs for longer ends by itself, with an error."""


def is_relayed(episode: int) -> bool:
    return episode % 3 == 2


def passes(episode: int) -> int:
    return 2 if episode % 5 == 3 else 1


def sizes(episode: int) -> dict[str, Any]:
    """What the episode is opened with: every second one is fixed, the others are dynamic."""
    return {
        "expected_samples": None if episode % 2 else SAMPLES,
        "global_batch_size": GLOBAL_BATCH,
        "micro_batch_size": MICRO_BATCH,
        "relayed": is_relayed(episode),
    }


def group_ids(episode: int) -> list[str]:
    return [f"{episode}.{group}" for group in range(GROUPS)]


def make_group(group_id: str) -> Samples:
    """The group's samples. Every one of them tells its number in all of its columns."""
    episode, group = map(int, group_id.split("."))
    numbers = np.arange(GROUP_SIZE) + episode * SAMPLES + group * GROUP_SIZE
    responses = [np.full(1 + number % 7, number) for number in numbers]
    return Samples(
        sample_ids=[f"s{number}" for number in numbers],
        group_ids=[group_id] * GROUP_SIZE,
        prompt_ids=Ragged.of([[number] for number in numbers], np.int32),
        response_ids=Ragged.of(responses, np.int32),
        rollout_logprobs=Ragged.of([-0.5 * row for row in responses], np.float32),
        policy_version_max=numbers.astype(np.int64),
    )


def numbers_of(samples: Samples) -> list[int]:
    """The numbers of whole samples. Raises ValueError if the columns of one are not all of the same sample."""
    numbers = [int(sample_id.removeprefix("s")) for sample_id in samples.sample_ids]
    for number, version, prompt, response in zip(
        numbers, samples.policy_version_max, samples.prompt_ids.rows(), samples.response_ids.rows(), strict=True
    ):
        if version != number or list(prompt) != [number] or list(response) != [number] * (1 + number % 7):
            raise ValueError(f"sample {number} has version {version}, prompt {prompt} and response {response}")
    return numbers


def trains(episode: int) -> Counter:
    """How often a pass of the episode trains each sample: a relayed one trains the one relayed before it too."""
    episodes = [episode, episode - 3] if is_relayed(episode) and episode >= 3 else [episode]
    return Counter(number + SAMPLES * which for which in episodes for number in range(SAMPLES))
