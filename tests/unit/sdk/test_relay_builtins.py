"""The built-in relay functions: what each trains."""

from collections import Counter

import pytest
from relay_history import history, names

from baton.relay.builtins import (
    BUILTINS,
    age_decayed,
    concat,
    last,
    newest_tokens,
    replace_flat,
    reward_prioritised,
    uniform,
)  # fmt: skip

EVEN = [0.0, 1.0, 0.0, 1.0]
FLAT = [1.0, 1.0, 0.0, 0.0]


def test_concat_is_everything_oldest_first_and_last_is_the_newest_episode():
    buffers = history(EVEN, EVEN)
    assert names(concat(buffers)) == [f"e{e}s{i}" for e in range(2) for i in range(4)]
    assert names(last(buffers)) == [f"e1s{i}" for i in range(4)]


def test_uniform_takes_k_each_at_most_once_from_all_episodes_alike():
    counts = Counter(name for seed in range(600) for name in names(uniform(history(EVEN, EVEN), k=2, seed=seed)))
    assert all(len(set(names(uniform(history(EVEN, EVEN), k=5, seed=seed)))) == 5 for seed in range(20))
    assert len(counts) == 8
    assert max(counts.values()) < 2 * min(counts.values())
    assert len(uniform(history(EVEN), k=99)) == 4


@pytest.mark.parametrize(("max_tokens", "count"), [(0, 0), (3, 0), (4, 1), (23, 5), (24, 6), (1000, 8)])
def test_newest_tokens_goes_back_as_far_as_the_budget_reaches_and_keeps_the_order(max_tokens, count):
    buffers = history(EVEN, EVEN, tokens=4)
    assert names(newest_tokens(buffers, max_tokens=max_tokens)) == names(concat(buffers))[8 - count :]


def test_groups_of_equal_rewards_are_replaced_by_the_newest_earlier_groups_that_differ_each_once():
    buffers = history([0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    assert names(replace_flat(buffers)) == ["e1s0", "e1s1", "e2s2", "e2s3", "e0s0", "e0s1"]


def test_flat_groups_stay_when_no_earlier_group_is_left():
    buffers = history([0.0, 1.0], FLAT, FLAT)
    assert names(replace_flat(buffers)) == ["e0s0", "e0s1", "e2s2", "e2s3"]
    assert names(replace_flat(history(FLAT))) == [f"e0s{i}" for i in range(4)]


def test_age_decay_halves_the_chance_with_every_half_life():
    first = Counter(
        names(age_decayed(history(EVEN, EVEN, EVEN), k=1, half_life=1.0, seed=seed))[0][:2] for seed in range(2000)
    )
    assert first["e2"] / first["e1"] == pytest.approx(2, rel=0.25)
    assert first["e1"] / first["e0"] == pytest.approx(2, rel=0.35)


def test_prioritised_samples_are_those_furthest_from_their_groups_mean():
    buffers = history([0.5, 0.5, 0.0, 1.0])
    picked = Counter(name for s in range(400) for name in names(reward_prioritised(buffers, k=1, temperature=0.1, seed=s)))
    assert picked["e0s2"] + picked["e0s3"] > 380
    assert min(picked["e0s2"], picked["e0s3"]) > 120


def test_a_choice_by_lot_is_the_same_for_the_same_seed_and_episode():
    for name, params in {"uniform": {}, "age_decayed": {}, "reward_prioritised": {}}.items():
        function = BUILTINS[name]
        chosen = [names(function(history(EVEN, EVEN), k=3, seed=seed, **params)) for seed in (1, 1, 2, 3, 4, 5)]
        assert chosen[0] == chosen[1]
        assert any(other != chosen[0] for other in chosen[2:])
