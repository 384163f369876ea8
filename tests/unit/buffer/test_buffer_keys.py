"""Names in the store."""

import pytest

from baton.errors import InvalidRequestError
from services.buffer.keys import ALL_RUNS, EpisodeKeys, RunKeys, run_of


def test_all_keys_of_a_run_share_one_hash_tag():
    keys = EpisodeKeys("run-1", 3)
    names = [value for owner in (keys, keys.run) for value in vars(owner).values() if str(value).startswith("baton:")]
    names += [keys.run.chunk(b"x" * 16), keys.run.state("coordinator"), EpisodeKeys("run-1", 4).episode]
    names = sorted(set(names) - {keys.run.prefix})
    assert len(names) == 18
    assert {name[name.index("{") : name.index("}") + 1] for name in names} == {"{run-1}"}


@pytest.mark.parametrize("run_id", ["", "a{b", "a}b"])
def test_a_run_id_that_would_break_the_hash_tag_is_refused(run_id):
    with pytest.raises(InvalidRequestError, match="run_id"):
        EpisodeKeys(run_id, 0)


def test_a_run_is_found_by_the_key_that_every_run_has():
    head, tail = ALL_RUNS.split("*")
    key = RunKeys("a:b").episodes
    assert key.startswith(head) and key.endswith(tail)
    assert run_of(key.encode()) == "a:b"
