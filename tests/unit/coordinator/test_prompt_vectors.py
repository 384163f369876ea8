"""Which prompts each episode and each evaluation takes, beside what ChatLearn's samplers did with the same configuration.

`then` was recorded from alibaba/ChatLearn at commit d8983915: it deals every replica its batches in advance, one of each
replica after the other, the last ones cut evenly. The prompts and their order are the same here. The cut is not: a request
goes to the replica with the fewest prompts outstanding, so only the last request is smaller.
"""

from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import chain, cycle, islice, zip_longest

import pytest
from harness import config, digits_count
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.clients import RolloutClient
from baton.clients.rollout import SamplingParams
from baton.config import RunConfig
from baton.engine import Engine, PromptItem
from baton.testing import FakeRollout, serve
from services.coordinator.fleet import Fleet
from services.coordinator.prompts import Prompts, build_prompts
from services.coordinator.rollouts import Rollouts

Batches = list[list[int]]


def prompts_of(
    size: int, samples: int, batch: int, replicas: int, *, repeats: int = 1, drop_last: bool = False, held: int = 0
) -> tuple[RunConfig, Prompts]:
    """A run of `size` prompts that are trained on and `held` that are not."""
    run = config(
        {"sample_per_episode": samples, "num_inference_per_prompt": repeats, "generation_batch_size": batch,
         "drop_last": drop_last, "train_micro_batch_size": 1, "train_global_batch_size": 1},
        models={"policy": {"num_replica": replicas}}, prompts={"source": "app", "holdout": held},
    )  # fmt: skip
    rows = [{"prompt": str(number), "i": number} for number in range(size + held)]
    return run, build_prompts(run, Engine(prompts=rows, flow=digits_count))


def numbers(items: Iterable[PromptItem]) -> list[int]:
    return [item.metadata["i"] for item in items]


def in_order(then: list[Batches]) -> list[int]:
    """What all replicas together drew, from batches by replica."""
    rounds = zip_longest(*then, fillvalue=[])
    return list(chain.from_iterable(chain.from_iterable(rounds)))


def batches(*firsts: int, size: int) -> Batches:
    return [list(range(first, first + size)) for first in firsts]


@dataclass(frozen=True)
class Sampler:
    size: int
    position: int
    """Prompts that were consumed before."""
    batch: int
    replicas: int
    samples: int
    """Of an episode."""
    then: list[Batches]
    drop_last: bool = False


SAMPLERS = [
    Sampler(35, 0, 4, 1, 16, [[*batches(*range(0, 32, 4), size=4), [32, 33, 34, 0], *batches(1, 5, 9, size=4)]]),
    Sampler(
        3, 0, 8, 2, 32,
        [
            [[(8 * at + place) % 3 for place in range(8)] for at in range(0, 14, 2)],
            [[(8 * at + place) % 3 for place in range(8)] for at in range(1, 14, 2)],
        ],
    ),
    Sampler(
        35, 0, 8, 2, 32,
        [batches(0, 16, 0, 16, 0, 16, 0, size=8), batches(8, 24, 8, 24, 8, 24, 8, size=8)],
        drop_last=True,
    ),
    Sampler(100, 16, 4, 2, 16, [batches(16, 24, 32, size=4), batches(20, 28, 36, size=4)]),
    Sampler(
        10, 0, 4, 2, 6,
        [[[0, 1, 2], [6, 7, 8], [2, 3, 4], [8, 9, 0]], [[3, 4, 5], [9, 0, 1], [5, 6, 7], [1, 2, 3]]],
    ),
]  # fmt: skip


@pytest.mark.parametrize("vector", SAMPLERS, ids=lambda vector: f"{vector.size} prompts, episodes of {vector.samples}")
def test_episodes_take_the_prompts_that_chatlearn_took_in_its_order(vector: Sampler) -> None:
    run, prompts = prompts_of(
        vector.size, vector.samples, min(vector.batch, vector.samples // vector.replicas), vector.replicas,
        drop_last=vector.drop_last,
    )  # fmt: skip  - a batch of all replicas that exceeds the episode is refused; ChatLearn cut it
    then, per_episode = in_order(vector.then), run.prompts_per_episode
    taken = []
    for episode in range(-(-len(then) // per_episode)):
        taken += numbers(prompts.take(vector.position + per_episode * episode, per_episode, episode))
    assert taken[: len(then)] == then


@given(st.data())
@settings(deadline=None, derandomize=True)  # other work on the machine is no failure
def test_prompts_go_round_and_round_from_wherever_the_run_stands(data: st.DataObject) -> None:
    """Few prompts or many, one or several samples of each, with and without the tail, over several rounds."""
    size, repeats, episodes = (data.draw(st.integers(1, most)) for most in (40, 4, 8))
    samples = repeats * data.draw(st.integers(1, 12))
    replicas = data.draw(st.integers(1, min(3, samples)))
    batch = data.draw(st.integers(1, min(8, samples // replicas)))
    drop_last = data.draw(st.booleans()) and size >= batch * replicas
    _, prompts = prompts_of(size, samples, batch, replicas, repeats=repeats, drop_last=drop_last)
    left = range(size // (batch * replicas) * batch * replicas if drop_last else size)
    each = samples // repeats
    endless = cycle(left)
    for episode in range(episodes):
        assert numbers(prompts.take(each * episode, each, episode)) == list(islice(endless, each))


async def requested(prompts: list[PromptItem], batch_size: int, replicas: int) -> list[int]:
    """How many prompts each request brought, the largest first; all of them must be asked for once."""
    fakes = [FakeRollout() for _ in range(replicas)]
    async with AsyncExitStack() as stack:
        clients = [RolloutClient((await stack.enter_async_context(serve(fake))).address) for fake in fakes]
        fleet = Fleet(clients, return_s=5.0)
        rollouts = Rollouts(fleet, batch_size=batch_size, group_size=1, timeout_s=30.0, max_attempts=1)
        answers = rollouts.generate(prompts, SamplingParams(), episode_id=0, published={0: ""})
        answered = [group.prompt.group_id async for group in answers]
    requests = [request for fake in fakes for request in fake.requests]
    asked = [prompt.group_id for request in requests for prompt in request.prompts]
    assert sorted(asked) == sorted(answered) == sorted(item.group_id for item in prompts)
    return sorted((len(request.prompts) for request in requests), reverse=True)


@pytest.mark.parametrize(
    ("samples", "replicas", "batch", "then", "now"),
    [(16, 1, 4, 4, 4), (256, 4, 4, 64, 64), (17, 2, 4, 5, 5), (19, 2, 4, 6, 5), (1024, 3, 4, 258, 256)],
)
async def test_requests_of_an_episode_are_never_more_than_chatlearn_s_batches(
    samples: int, replicas: int, batch: int, then: int, now: int
) -> None:
    run, prompts = prompts_of(5, samples, batch, replicas)
    sizes = await requested(list(prompts.take(0, run.prompts_per_episode, 0)), run.prompts_per_request, replicas)
    assert sizes == [batch] * (samples // batch) + [samples % batch] * (samples % batch > 0)
    assert len(sizes) == now <= then


EVALUATIONS = [
    (
        4, 81,
        [[*batches(*range(first, 72, 12), size=4), last] for first, last in
         ((0, [72, 73, 74]), (4, [75, 76, 77]), (8, [78, 79, 80]))],
        [4] * 20 + [1],
    ),
    (3, 10, [[[0, 1, 2, 3]], [[4, 5, 6]], [[7, 8, 9]]], [3, 3, 3, 1]),
]  # fmt: skip


@pytest.mark.parametrize(("batch", "size", "then", "now"), EVALUATIONS, ids=["81 prompts", "10 prompts"])
async def test_an_evaluation_asks_for_every_held_out_prompt_once_in_chatlearn_s_order_but_not_its_batches(
    batch: int, size: int, then: list[Batches], now: list[int]
) -> None:
    run, prompts = prompts_of(1, 2 * 3 * batch, batch, 3, held=size)
    held = list(prompts.held_out())
    assert [number - 1 for number in numbers(held)] == in_order(then) == list(range(size))
    sizes = await requested(held, run.prompts_per_request, 3)
    assert sizes == now
    assert sizes != sorted((len(part) for replica in then for part in replica), reverse=True), "on purpose, and stated"
