"""Reward functions in real worker processes: every way that a call can end, and what it does to the run."""

import asyncio
import math
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest
from harness import config

from baton.config.task import RewardFunctionConfig, RewardsConfig
from baton.engine import Engine, Group, PromptItem
from baton.errors import ConfigError, DeadlineError, RunFailedError
from baton.samples import Ragged, RewardStatus, Samples
from services.coordinator.builtin_rewards import digits_only
from services.coordinator.rewards import ErrorBudget, RewardPool, reward_functions

V, A, E, T = RewardStatus.VALUE, RewardStatus.ABSTAIN, RewardStatus.ERROR, RewardStatus.TIMEOUT


def pool(*functions, deadline_s=20.0, **options):
    """A pool of one worker over functions of `reward_functions`, given as (name, options)."""
    configs = [RewardFunctionConfig(function=f"reward_functions:{name}", **(options | own)) for name, own in functions]
    return RewardPool(configs, RewardsConfig(), lenient(ErrorBudget(0.5)), deadline_s=deadline_s)


def lenient(budget):
    """As in an episode of many samples."""
    budget.begin(1000, 1)
    return budget


@asynccontextmanager
async def started(made):
    """The pool at work."""
    try:
        await made.start(60.0)
        yield made
    finally:
        await made.close()


@pytest.fixture(scope="module")
def shared():
    """Workers that many tests share: the function does what the response says."""
    made = pool(("obeys", {}), timeout_s=3)
    asyncio.run(made.start(60.0))
    yield made
    asyncio.run(made.close())


@pytest.fixture
def rewards(shared):
    lenient(shared.budget)
    return shared


def group(*texts, **metadata):
    size = len(texts)
    samples = Samples([f"g/{i}" for i in range(size)], ["g"] * size, response_ids=Ragged.of([[1]] * size, np.int32))
    return Group(PromptItem("g", [], "the prompt", metadata), samples, list(texts))


def outcome(scored):
    columns = zip(scored.samples.reward_status, scored.samples.rewards, strict=True)
    return [(RewardStatus(status), float(reward)) for status, reward in columns]


async def test_weighted_values_add_up_and_a_sample_needs_one_of_every_function():
    functions = [("length", {"weight": 2.0}), ("says_metadata", {"weight": -1.0, "params": {"key": "other"}})]
    async with started(pool(*functions)) as rewards:
        scored = await rewards.score(group("ab", "abc", "?", other="abc"))
    assert outcome(scored)[:2] == [(V, 4.0), (V, 5.0)]
    assert scored.samples.reward_status[2] == A and math.isnan(scored.samples.rewards[2])
    assert scored.scores["length"].tolist() == [2, 3, 1]
    assert scored.scores["says_metadata"][:2].tolist() == [0, 1]


async def test_what_a_function_returns_decides_its_outcome(rewards):
    scored = await rewards.score(group("nan", "inf", "text", "raise", "sys.exit", "none", "true", "int"))
    assert [status for status, _ in outcome(scored)] == [E, E, E, E, E, A, V, V]
    assert scored.samples.rewards[6:].tolist() == [1.0, 3.0]
    assert all(math.isnan(reward) for reward in scored.samples.rewards[:6])


async def test_a_hanging_call_times_out_and_its_worker_is_replaced(rewards):
    begun = time.monotonic()
    scored = await rewards.score(group("pid", "hang", "pid"))
    assert [status for status, _ in outcome(scored)] == [V, T, V]
    before, _, after = scored.scores["obeys"]
    assert before != after
    assert time.monotonic() - begun < 60


async def test_a_call_that_ends_its_process_is_an_error_of_that_call_alone(rewards):
    scored = await rewards.score(group("exit", "int"))
    assert [status for status, _ in outcome(scored)] == [E, V]


async def test_too_many_failures_end_the_run_with_function_cause_and_fix(rewards):
    rewards.budget.begin(1, 1)
    with pytest.raises(RunFailedError) as failure:
        await rewards.score(group("raise"))
    message = str(failure.value)
    assert "reward function obeys failed: ValueError: cannot read 'raise'" in message
    assert "reward_functions.py" in message  # the traceback's tail
    assert "1 of the episode's 1 rewards failed, more than rewards.max_error_rate (0.5) allows" in message
    assert "raise rewards.max_error_rate" in message


async def test_timeouts_count_as_failures_and_abstentions_do_not(rewards):
    rewards.budget.begin(1, 1)
    await rewards.score(group("none"))
    rewards.budget.begin(1, 1)
    with pytest.raises(RunFailedError, match=r"obeys timed out: did not return within its timeout_s of 3 s"):
        await rewards.score(group("hang"))


def test_the_error_rate_is_that_of_the_whole_episode():
    budget = ErrorBudget(0.25)
    budget.begin(4, sources=2)
    for failure in ("broken", "broken too", "", ""):
        budget.count(failure)  # 2 of 8, however early they come
    with pytest.raises(RunFailedError, match=r"^broken\n3 of the episode's 8 rewards failed"):
        budget.count("broken")


def test_samples_without_a_reward_count_whoever_left_them_so_and_a_failed_call_counts_once():
    budget = ErrorBudget(0.25)
    budget.begin(8, sources=1)
    for failure in ("late", "broken"):
        budget.count(failure)
    budget.count_group(group("a", "b", "c").with_rewards([None, 0.0, math.nan], [T, V, E]))
    with pytest.raises(RunFailedError, match=r"^late\n3 of the episode's 8 rewards failed"):
        budget.count_group(group("d", "e").with_rewards([1.0, math.inf]))


def test_a_flows_reward_that_is_no_number_is_an_error_and_leaves_the_reason_that_a_missing_one_had():
    first = group(*"abcdef").with_rewards([1.0, None, math.nan, 2.0, None, 0.0], [V, A, E, V, T, V])
    again = first.with_rewards([*(first.samples.rewards[:4] + 1), None, math.inf])
    assert [status for status, _ in outcome(again)] == [V, A, E, V, A, E]
    assert [status for status, _ in outcome(group("a", "b").with_rewards([math.nan, None]))] == [E, A]


async def test_a_function_that_cannot_be_imported_is_told_at_the_start():
    with pytest.raises(ConfigError, match=r"reward reward_functions:missing cannot be imported: AttributeError"):
        async with started(pool(("length", {}), ("missing", {}))):
            pass


async def test_workers_that_answer_nothing_are_an_error_not_a_hang():
    async with started(pool(("obeys", {}), deadline_s=0.3, timeout_s=60.0)) as rewards:
        with pytest.raises(DeadlineError, match=r"answered no call for 0.3 s.*deadlines.reward_s"):
            await asyncio.wait_for(rewards.score(group("hang")), 60)


async def test_a_cancelled_score_frees_the_worker():
    async with started(pool(("obeys", {}), timeout_s=60.0)) as rewards:
        scoring = asyncio.create_task(rewards.score(group("hang")))
        await asyncio.sleep(0.3)
        scoring.cancel()
        scored = await asyncio.wait_for(rewards.score(group("int")), 60)
    assert outcome(scored) == [(V, 3.0)]


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
