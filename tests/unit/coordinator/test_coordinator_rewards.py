"""Reward functions in real worker processes: every way that a call can end, and what it does to the run."""

import asyncio
import math
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest
from baton.config.task import RewardFunctionConfig, RewardsConfig
from baton.engine import Engine, Group, PromptItem
from baton.errors import ConfigError, DeadlineError, RunFailedError
from baton.samples import Ragged, RewardStatus, Samples
from harness import config

from services.coordinator.builtin_rewards import digits_only
from services.coordinator.rewards import ErrorBudget, RewardPool, reward_functions

V, A, E, T = RewardStatus.VALUE, RewardStatus.ABSTAIN, RewardStatus.ERROR, RewardStatus.TIMEOUT


@asynccontextmanager
async def pool(*functions, max_error_rate=1.0, deadline_s=20.0, **options):
    """A pool of one worker over functions of `reward_functions`, given as names or (name, options)."""
    named = [(function, {}) if isinstance(function, str) else function for function in functions]
    configs = [RewardFunctionConfig(function=f"reward_functions:{name}", **(options | own)) for name, own in named]
    made = RewardPool(configs, RewardsConfig(max_error_rate=max_error_rate), deadline_s=deadline_s)
    try:
        await made.start(20.0)
        made.begin_episode(1)
        yield made
    finally:
        await made.close()


def group(*texts, **metadata):
    size = len(texts)
    samples = Samples([f"g/{i}" for i in range(size)], ["g"] * size, response_ids=Ragged.of([[1]] * size, np.int32))
    return Group(PromptItem("g", [], "the prompt", metadata), samples, list(texts))


def outcome(scored):
    columns = zip(scored.samples.reward_status, scored.samples.rewards, strict=True)
    return [(RewardStatus(status), float(reward)) for status, reward in columns]


async def test_weighted_values_add_up_and_are_told_by_function():
    functions = [("length", {"weight": 2.0}), ("says_metadata", {"weight": -1.0, "params": {"key": "other"}})]
    async with pool(*functions) as rewards:
        scored = await rewards.score(group("ab", "abc", other="abc"))
    assert outcome(scored) == [(V, 4.0), (V, 5.0)]
    assert {name: values.tolist() for name, values in scored.scores.items()} == {"length": [2, 3], "says_metadata": [0, 1]}


async def test_what_a_function_returns_decides_its_outcome():
    async with pool("returns") as rewards:
        scored = await rewards.score(group("nan", "inf", "none", "text", "true", "int"))
    assert [status for status, _ in outcome(scored)] == [E, E, A, E, V, V]
    assert scored.samples.rewards[4:].tolist() == [1.0, 3.0]
    assert all(math.isnan(reward) for reward in scored.samples.rewards[:4])


async def test_a_sample_needs_a_value_of_every_function():
    async with pool("length", "raises_on_x") as rewards:
        scored = await rewards.score(group("x", "yy"))
    assert [status for status, _ in outcome(scored)] == [E, V]
    assert math.isnan(scored.samples.rewards[0])


async def test_a_hanging_call_times_out_and_its_worker_is_replaced():
    async with pool("hangs_on_x", timeout_s=0.5) as rewards:
        begun = time.monotonic()
        scored = await rewards.score(group("a", "x", "b"))
        took = time.monotonic() - begun
    assert [status for status, _ in outcome(scored)] == [V, T, V]
    first, _, second = scored.scores["hangs_on_x"]
    assert first != second  # the pids of the two workers
    assert took < 10


async def test_a_call_that_ends_its_process_is_an_error_of_that_call_alone():
    async with pool("exits_on_x") as rewards:
        scored = await rewards.score(group("x", "a"))
    assert [status for status, _ in outcome(scored)] == [E, V]


async def test_too_many_failures_end_the_run_with_function_cause_and_fix():
    async with pool("raises", max_error_rate=0.0) as rewards:
        with pytest.raises(RunFailedError) as failure:
            await rewards.score(group("seven"))
    message = str(failure.value)
    assert "reward function raises failed: ValueError: cannot read 'seven'" in message
    assert "reward_functions.py" in message  # the traceback's tail
    assert "1 of the episode's 1 reward calls failed" in message
    assert "raise rewards.max_error_rate" in message


async def test_timeouts_count_as_failures():
    async with pool("hangs", max_error_rate=0.0, timeout_s=0.2) as rewards:
        with pytest.raises(RunFailedError, match=r"hangs timed out: did not return within its timeout_s of 0.2 s"):
            await rewards.score(group("x"))


def test_the_error_rate_is_that_of_the_whole_episode():
    bad, good = (E, math.nan, "broken"), (V, 1.0, "")
    budget = ErrorBudget(0.25, planned_calls=8)
    for outcome_ in (bad, bad, good, good):
        budget.count("f", outcome_)  # 2 of 8, however early they come
    with pytest.raises(RunFailedError, match="3 of the episode's 8 reward calls failed"):
        budget.count("f", bad)


async def test_abstaining_is_no_failure():
    async with pool("returns", max_error_rate=0.0) as rewards:
        scored = await rewards.score(group("none", "none"))
    assert [status for status, _ in outcome(scored)] == [A, A]


async def test_a_function_that_cannot_be_imported_is_told_at_the_start():
    with pytest.raises(ConfigError, match=r"reward reward_functions:missing cannot be imported: AttributeError"):
        async with pool("length", "missing"):
            pass


async def test_workers_that_answer_nothing_are_an_error_not_a_hang():
    async with pool("hangs", deadline_s=0.3, timeout_s=60.0) as rewards:
        with pytest.raises(DeadlineError, match=r"answered no call for 0.3 s.*deadlines.reward_s"):
            await asyncio.wait_for(rewards.score(group("x")), 10)


async def test_a_cancelled_score_frees_the_worker():
    async with pool("hangs_on_x", timeout_s=60.0) as rewards:
        scoring = asyncio.create_task(rewards.score(group("x")))
        await asyncio.sleep(0.3)
        scoring.cancel()
        scored = await asyncio.wait_for(rewards.score(group("a")), 10)
    assert [status for status, _ in outcome(scored)] == [V]


@pytest.mark.parametrize(("text", "value"), [(" 12\n", 1), ("-3", 1), ("+3", 1), ("3.0", 0), ("", 0), ("a1", 0), ("1 2", 0)])
def test_digits_only_takes_one_integer_and_nothing_else(text, value):
    assert digits_only("", text, {}) == value


def test_rewards_come_from_the_run_file_or_from_the_engine():
    from reward_functions import length

    in_file = config(rewards={"functions": [{"function": "digits_only"}]})
    assert [f.function for f in reward_functions(in_file, Engine())] == ["services.coordinator.builtin_rewards:digits_only"]
    assert [f.function for f in reward_functions(config(), Engine(rewards=[length]))] == ["reward_functions:length"]
    with pytest.raises(ConfigError, match="both have rewards"):
        reward_functions(in_file, Engine(rewards=[length]))
    with pytest.raises(ConfigError, match=r"rewards.functions: is empty"):
        reward_functions(config(), Engine())
    with pytest.raises(ConfigError, match=r"no built-in 'nonsense'; choose digits_only or verifier"):
        reward_functions(config(), Engine(rewards=["nonsense"]))
