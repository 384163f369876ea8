"""The plan of micro-batches: which sample goes where."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.errors import InvalidRequestError
from services.buffer.batching import LeaseId, Share, cut_by_tokens, first_uses, parse_step, plan, steps_per_pass


def positions(total, global_batch, micro_batch, step, rank=0, ranks=1, pass_index=0, seed=0, episode=0):
    found = plan(Share(pass_index, step, rank, ranks, seed), episode, total, global_batch)
    return found.positions.reshape(-1, micro_batch).tolist()


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]), (1, [[10, 11, 12, 13, 14], [15, 0, 1, 2, 3]])],
)
def test_the_tail_is_filled_from_the_start(step, expected):
    assert positions(16, 10, 5, step) == expected


@pytest.mark.parametrize(
    ("rank", "expected"),
    [(0, [[16, 17], [18, 19]]), (1, [[0, 1], [2, 3]]), (2, [[4, 5], [6, 7]]), (3, [[8, 9], [10, 11]])],
)
def test_every_rank_of_the_last_step_is_full(rank, expected):
    assert positions(20, 16, 2, 1, rank, ranks=4) == expected


def test_the_wrap_repeats_as_often_as_it_takes():
    found = plan(Share(0, 0, 0, 1, 0), 0, 3, 8)
    assert found.positions.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert found.wrapped.tolist() == [False] * 3 + [True] * 5


@st.composite
def units(draw):
    """(unit, total, global batch, ranks, pass, seed), all sizes multiples of the unit."""
    unit, ranks, each = draw(st.integers(1, 8)), draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 4))
    total, pass_index, seed = draw(st.integers(1, 40)), draw(st.integers(0, 2)), draw(st.integers(0, 99))
    return unit, unit * total, unit * ranks * each, ranks, pass_index, seed


@given(units())
@settings(deadline=None)
def test_units_stay_together_in_every_pass_and_no_rank_gets_a_part_of_one(episode):
    unit, total, global_batch, ranks, pass_index, seed = episode
    fresh = []
    for step in range(steps_per_pass(total, global_batch)):
        for rank in range(ranks):
            found = plan(Share(pass_index, step, rank, ranks, seed), 3, total, global_batch, unit)
            by_unit, wrapped = found.positions.reshape(-1, unit), found.wrapped.reshape(-1, unit)
            assert (by_unit[:, 0] % unit == 0).all() and (by_unit == by_unit[:, :1] + np.arange(unit)).all()
            assert (wrapped == wrapped[:, :1]).all()
            fresh += found.positions[~found.wrapped].tolist()
    assert sorted(fresh) == list(range(total))


@given(units())
@settings(deadline=None)
def test_units_are_shuffled_as_samples_are(episode):
    unit, total, _, _, pass_index, seed = episode
    share = Share(pass_index, 0, 0, 1, seed)
    firsts = plan(share, 3, total, total, unit).positions[::unit]
    assert firsts.tolist() == (plan(share, 3, total // unit, total // unit).positions * unit).tolist()


@given(st.integers(1, 5), st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 300))
@settings(deadline=None)
def test_micro_batches_by_tokens_hold_whole_units(unit, units_tokens, budget):
    tokens = np.repeat(units_tokens, unit)
    cuts = cut_by_tokens(tokens, budget, unit)
    assert [at for cut in cuts for at in range(len(tokens))[cut]] == list(range(len(tokens)))
    assert all(cut.start % unit == 0 and cut.stop % unit == 0 for cut in cuts)
    assert all(tokens[cut].sum() <= budget or cut.stop - cut.start == unit for cut in cuts)


@st.composite
def episodes(draw):
    """(total, global batch, micro batch, ranks, pass, seed)"""
    micro_batch, ranks, each = draw(st.integers(1, 6)), draw(st.sampled_from([1, 2, 3, 4, 8])), draw(st.integers(1, 4))
    total, pass_index, seed = draw(st.integers(1, 200)), draw(st.integers(0, 2)), draw(st.integers(-(2**63), 2**63 - 1))
    return total, micro_batch * ranks * each, micro_batch, ranks, pass_index, seed


@given(episodes())
@settings(deadline=None)  # other work on the machine is no failure
def test_a_pass_trains_every_sample_once_and_every_rank_fully(episode):
    total, global_batch, _, ranks, pass_index, seed = episode
    fresh = []
    for step in range(steps_per_pass(total, global_batch)):
        for rank in range(ranks):
            found = plan(Share(pass_index, step, rank, ranks, seed), 3, total, global_batch)
            assert found.positions.shape == (global_batch // ranks,)
            fresh += found.positions[~found.wrapped].tolist()
            assert set(found.positions[found.wrapped].tolist()) <= set(range(total))
    assert sorted(fresh) == list(range(total))


@given(episodes())
@settings(deadline=None)  # other work on the machine is no failure
def test_a_step_has_the_same_samples_in_the_same_order_whatever_the_number_of_ranks(episode):
    total, global_batch, micro_batch, ranks, pass_index, seed = episode
    for step in range(steps_per_pass(total, global_batch)):
        whole = positions(total, global_batch, micro_batch, step, 0, 1, pass_index, seed)
        parts = [positions(total, global_batch, micro_batch, step, rank, ranks, pass_index, seed) for rank in range(ranks)]
        assert whole == [row for part in parts for row in part]


@given(episodes())
@settings(deadline=None)  # other work on the machine is no failure
def test_what_an_unfinished_episode_hands_out_is_what_the_finished_one_would(episode):
    total, global_batch, _, ranks, _, seed = episode
    for step in range(steps_per_pass(total, global_batch)):
        early = plan(Share(0, step, ranks - 1, ranks, seed), 0, None, global_batch).positions
        late = plan(Share(0, step, ranks - 1, ranks, seed), 0, total, global_batch).positions
        exists = early < total
        assert np.array_equal(early[exists], late[exists])


def test_a_later_pass_of_an_unfinished_episode_cannot_be_planned():
    assert plan(Share(1, 0, 0, 1, 0), 0, None, 4) is None


def test_the_shuffle_depends_on_seed_episode_and_pass_and_on_nothing_else():
    def order(seed, episode, pass_index):
        return positions(64, 64, 64, 0, pass_index=pass_index, seed=seed, episode=episode)[0]

    assert order(1, 2, 3) == order(1, 2, 3)
    orders = [order(1, 2, 3), order(2, 2, 3), order(1, 3, 3), order(1, 2, 4), order(-1, 2, 3), list(range(64))]
    assert len({tuple(each) for each in orders}) == len(orders)


def test_the_shuffle_is_the_one_that_earlier_releases_drew():
    assert positions(8, 8, 8, 0, pass_index=1, seed=42, episode=5)[0] == [4, 2, 3, 7, 5, 0, 1, 6]


@given(episodes())
@settings(deadline=None)  # other work on the machine is no failure
def test_first_uses_add_up_to_the_total(episode):
    total, global_batch, *_ = episode
    steps = steps_per_pass(total, global_batch)
    assert sum(first_uses(step, global_batch, total) for step in range(steps)) == total


@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(1, 150))
@settings(deadline=None)  # other work on the machine is no failure
def test_micro_batches_by_tokens_hold_every_sample_once_in_order_within_the_budget_and_no_two_could_be_one(tokens, budget):
    cuts = cut_by_tokens(np.asarray(tokens), budget)
    assert [at for cut in cuts for at in range(len(tokens))[cut]] == list(range(len(tokens)))
    sums = [sum(tokens[cut]) for cut in cuts]
    assert all(total <= budget or cut.stop - cut.start == 1 for cut, total in zip(cuts, sums, strict=True))
    assert all(sums[i] + tokens[cuts[i + 1].start] > budget for i in range(len(cuts) - 1))


def test_lease_ids_are_read_back():
    step = Share(2, 13, 0, 1, 0).step
    assert parse_step(step) == (2, 13)
    assert LeaseId.parse(str(LeaseId(step, 4))) == LeaseId(step, 4)


@pytest.mark.parametrize("lease_id", ["", "p1", "p1-s", "p-1-s2", "p1-s2", "p1-s2-a", "p1-s2-a1 ", "s1-p2-a1"])
def test_anything_else_is_not_a_lease_id(lease_id):
    with pytest.raises(InvalidRequestError, match="lease_id"):
        LeaseId.parse(lease_id)
