"""The learning rate of each step, by the formula of its course."""

import math

import pytest
import torch

from baton.config.trainable import TrainableConfig
from services.trainer.megatron.schedule import schedule_of

TOTAL = 12


def rates(steps: int = TOTAL, **options) -> list[float]:
    config = TrainableConfig(lr=1.0, weight_decay=0.1, **options)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.0)
    schedule = schedule_of(optimizer, config, TOTAL)
    found = []
    for _ in range(steps):
        schedule.step(1)
        found.append(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[0]["weight_decay"] == 0.1
    return found


def decayed(style: str, step: int, warm_up: int, end: int, least: float) -> float:
    if step <= warm_up:
        return step / warm_up
    done = min((step - warm_up) / (end - warm_up), 1.0)
    left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[style]
    return least + (1 - least) * left


@pytest.mark.parametrize("style", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warm_up", [0, 3])
def test_the_rate_rises_to_lr_and_then_goes_its_course_to_min_lr_at_the_runs_end(style: str, warm_up: int) -> None:
    least = 0.0 if style == "constant" else 0.25
    found = rates(lr_decay_style=style, lr_warmup_iters=warm_up, min_lr=least)
    assert found == pytest.approx([decayed(style, step, warm_up, TOTAL, least) for step in range(1, TOTAL + 1)])


def test_a_decay_of_a_length_of_its_own_ends_there_and_stays() -> None:
    found = rates(lr_decay_style="linear", lr_decay_iters=8, min_lr=0.5)
    assert found == pytest.approx([decayed("linear", step, 0, 8, 0.5) for step in range(1, TOTAL + 1)])
    assert found[7:] == [0.5] * 5


def test_a_warm_up_that_is_longer_than_the_run_rises_to_its_end() -> None:
    assert rates(lr_warmup_iters=24, lr_decay_style="cosine") == pytest.approx([step / 24 for step in range(1, TOTAL + 1)])
