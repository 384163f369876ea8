"""What agents sampled: kept in order, numbered through its group, listed until it is forgotten, and bounded."""

import numpy as np
import pytest

from baton.errors import BackpressureError
from baton.samples import Ragged, Samples
from services.rollout.recordings import Answered, Recordings


def answered(*responses: list[int]) -> Answered:
    samples = Samples(
        sample_ids=[""] * len(responses),
        episode_ids=np.zeros(len(responses), np.int64),
        prompt_ids=Ragged.of([[1, 2, 3]] * len(responses), np.int32),
        response_ids=Ragged.of(responses, np.int32),
    )
    return Answered(samples, [str(response) for response in responses])


def ids(recordings: Recordings, *groups: str) -> list[list[str]]:
    return [one.samples.sample_ids for one in recordings.listed(groups, 0)]


def test_samples_are_numbered_through_all_requests_of_a_group() -> None:
    recordings = Recordings(1000)
    recordings.add("a", answered([5], [6]))
    recordings.add("b", answered([7]))
    recordings.add("a", answered([8]))
    assert ids(recordings, "a") == [["a/0", "a/1"], ["a/2"]]
    assert ids(recordings) == [["a/0", "a/1"], ["a/2"], ["b/0"]]
    assert ids(recordings, "b", "nobody") == [["b/0"]]


def test_they_are_listed_under_the_episode_that_is_asked_for() -> None:
    recordings = Recordings(1000)
    recordings.add("a", answered([5], [6]))
    (one,) = recordings.listed(["a"], 7)
    assert one.samples.episode_ids.tolist() == [7, 7]


def test_what_is_forgotten_is_gone_and_its_room_free() -> None:
    recordings = Recordings(8)
    recordings.add("a", answered([5], [6]))
    with pytest.raises(BackpressureError, match=r"8 recorded tokens wait to be taken, and .*max_recorded_tokens is 8"):
        recordings.check_room()
    assert recordings.forget(["a/0", "a/1", "a/7", "nobody/0"]) == 2
    assert recordings.forget(["a/0"]) == 0
    recordings.check_room()
    assert (ids(recordings), recordings.tokens) == ([], 0)


def test_what_came_since_it_was_listed_stays_and_no_number_is_given_twice() -> None:
    recordings = Recordings(1000)
    recordings.add("a/b", answered([5], [6]))
    (listed,) = recordings.listed(["a/b"], 0)
    recordings.add("a/b", answered([7]))
    recordings.add("c", answered([8]))
    assert recordings.forget(listed.samples.sample_ids) == 2
    assert sorted(ids(recordings)) == [["a/b/2"], ["c/0"]]
    assert recordings.forget(["a/b/2"]) == 1
    recordings.add("a/b", answered([9]))
    assert ids(recordings) == [["c/0"], ["a/b/3"]]


def test_an_answer_that_is_a_group_of_its_own_leaves_no_trace() -> None:
    recordings = Recordings(1000)
    recordings.add("id", answered([5]), alone=True)
    assert recordings.forget(["id/0"]) == 1
    assert not recordings._groups and not recordings._numbers
