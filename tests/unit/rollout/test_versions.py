"""A replica's version: what it admits, and when weights that arrived are served."""

import time

import pytest

from baton.api.rollout.v1 import rollout_pb2 as pb
from baton.errors import DigestMismatchError, NotReadyError, StalePolicyError
from services.rollout.versions import VersionGate

HEALTHY, UPDATING, STALE = pb.REPLICA_STATE_HEALTHY, pb.REPLICA_STATE_UPDATING, pb.REPLICA_STATE_STALE


def served(version: int = 3, digest: str = "d3") -> VersionGate:
    gate = VersionGate()
    gate.begin(version)
    gate.arrived(version, digest)
    gate.commit(version, digest)
    return gate


def test_a_new_replica_serves_version_zero() -> None:
    gate = VersionGate()
    assert (gate.state, gate.version, gate.digest) == (HEALTHY, 0, "")
    gate.admit(0, None)


@pytest.mark.parametrize(("exact", "minimum"), [(None, None), (3, None), (None, 3), (None, 0), (3, 3)])
def test_a_request_that_the_served_version_satisfies_is_admitted(exact: int | None, minimum: int | None) -> None:
    served(3).admit(exact, minimum)


@pytest.mark.parametrize(("exact", "minimum"), [(2, None), (4, None), (0, None), (None, 4), (3, 4)])
def test_another_version_is_refused_naming_both(exact: int | None, minimum: int | None) -> None:
    with pytest.raises(StalePolicyError) as caught:
        served(3).admit(exact, minimum)
    wanted = exact if exact not in (None, 3) else minimum
    assert f"version {wanted}" in str(caught.value)
    assert "serves" in str(caught.value)
    assert "3" in str(caught.value)


def test_nothing_is_served_from_the_beginning_of_an_update_to_its_commit() -> None:
    gate = served(3)
    gate.begin(4)
    assert gate.state == UPDATING
    with pytest.raises(NotReadyError, match="version 4 is arriving"):
        gate.admit(None, None)
    gate.arrived(4, "d4")
    with pytest.raises(NotReadyError, match="version 4 has arrived and waits for its commit"):
        gate.admit(None, None)
    gate.commit(4, "d4")
    gate.admit(4, None)
    assert (gate.state, gate.version, gate.digest, gate.reason) == (HEALTHY, 4, "d4", "")


def test_the_old_version_is_reported_until_the_commit() -> None:
    gate = served(3)
    gate.begin(4)
    gate.arrived(4, "d4")
    assert (gate.version, gate.digest) == (3, "d3")


def test_a_failed_update_serves_nothing_until_a_whole_one_is_committed() -> None:
    gate = served(3)
    gate.begin(4)
    gate.fail(4, "the sender is gone")
    assert gate.state == STALE
    with pytest.raises(NotReadyError, match="the update to version 4 failed: the sender is gone"):
        gate.admit(3, None)
    gate.begin(4)
    gate.arrived(4, "d4")
    gate.commit(4, "d4")
    gate.admit(4, None)


def test_an_update_must_not_be_older_than_what_is_served() -> None:
    gate = served(3)
    with pytest.raises(NotReadyError, match="version 2 cannot follow version 3"):
        gate.begin(2)
    gate.admit(3, None)


@pytest.mark.parametrize("second", [4, 5])
def test_while_one_version_arrives_another_update_is_refused_and_changes_nothing(second: int) -> None:
    gate = served(3)
    gate.begin(4)
    with pytest.raises(NotReadyError, match="no weights can be taken: version 4 is arriving"):
        gate.begin(second)
    gate.arrived(4, "d4")
    gate.commit(4, "d4")
    gate.admit(4, None)


@pytest.mark.parametrize("ended", ["failed", "arrived"])
def test_an_update_that_ended_without_a_commit_may_be_followed_by_another(ended: str) -> None:
    gate = served(3)
    gate.begin(4)
    if ended == "failed":
        gate.fail(4, "the caller gave it up")
    else:
        gate.arrived(4, "d4")
    gate.begin(4)
    with pytest.raises(NotReadyError, match="has not arrived here"):
        gate.commit(4, "d4")
    gate.arrived(4, "d4")
    gate.commit(4, "d4")
    gate.admit(4, None)


def test_what_is_served_may_come_again_and_is_served_after_its_commit() -> None:
    gate = served(3)
    gate.begin(3)
    with pytest.raises(NotReadyError, match="version 3 cannot be committed: it has not arrived here"):
        gate.commit(3, "d3")
    gate.arrived(3, "d3")
    with pytest.raises(NotReadyError, match="waits for its commit"):
        gate.admit(3, None)
    gate.commit(3, "d3")
    gate.admit(3, None)


def test_what_is_served_must_not_come_again_as_other_weights() -> None:
    gate = served(3)
    gate.begin(3)
    with pytest.raises(
        DigestMismatchError, match="version 3 failed: it was served as weights d3, and weights other arrived"
    ):
        gate.arrived(3, "other")
    assert gate.state == STALE


def test_a_commit_of_another_digest_makes_the_replica_stale_and_names_both() -> None:
    gate = served(3)
    gate.begin(4)
    gate.arrived(4, "arrived")
    with pytest.raises(DigestMismatchError, match="arrived with digest arrived, the sender's is sent"):
        gate.commit(4, "sent")
    assert (gate.state, gate.version) == (STALE, 3)


def test_after_a_failure_what_had_arrived_can_no_longer_be_committed() -> None:
    gate = served(3)
    gate.begin(4)
    gate.arrived(4, "d4")
    gate.fail(4, "its workers hold different weights")
    with pytest.raises(NotReadyError, match="version 4 cannot be committed"):
        gate.commit(4, "d4")
    assert gate.state == STALE


@pytest.mark.parametrize("version", [4, 5])
def test_a_version_that_has_not_arrived_cannot_be_committed(version: int) -> None:
    gate = served(3)
    gate.begin(4)
    if version == 5:
        gate.arrived(4, "d4")
    with pytest.raises(NotReadyError, match=f"version {version} cannot be committed: it has not arrived here"):
        gate.commit(version, "d")
    assert gate.state == UPDATING


def test_a_repeated_commit_changes_nothing_and_takes_no_time() -> None:
    gate = served(3)
    assert gate.commit(3, "d3") == 0.0
    assert (gate.state, gate.version) == (HEALTHY, 3)


def test_the_commit_tells_how_long_nothing_was_served() -> None:
    gate = served(3)
    gate.begin(4)
    time.sleep(0.05)
    gate.arrived(4, "d4")
    assert 0.05 <= gate.commit(4, "d4") < 60.0


@pytest.mark.parametrize("state", [pb.REPLICA_STATE_PAUSED, pb.REPLICA_STATE_ASLEEP])
def test_a_closed_replica_takes_neither_requests_nor_weights_until_it_is_opened(state: int) -> None:
    gate = served(3)
    gate.close(state, "taken aside")
    assert (gate.state, gate.version) == (state, 3)
    with pytest.raises(NotReadyError, match="taken aside"):
        gate.admit(None, None)
    with pytest.raises(NotReadyError, match="no weights can be taken: taken aside"):
        gate.begin(4)
    gate.open()
    gate.admit(3, None)
    gate.begin(4)


@pytest.mark.parametrize(
    ("state", "closed"),
    [
        (pb.REPLICA_STATE_PAUSED, "before it arrived"),  # asleep it could not arrive: see test_replica_sleep
        (pb.REPLICA_STATE_PAUSED, "before its commit"),
        (pb.REPLICA_STATE_ASLEEP, "before its commit"),
    ],
)
def test_what_arrives_while_the_replica_is_closed_is_not_served_until_it_is_opened(state: int, closed: str) -> None:
    gate = served(3)
    gate.begin(4, serving=True)
    if closed == "before it arrived":
        gate.close(state, "taken aside")
    gate.arrived(4, "d4")
    if closed == "before its commit":
        gate.close(state, "taken aside")
    with pytest.raises(NotReadyError, match="version 4 cannot be committed: taken aside"):
        gate.commit(4, "d4")
    with pytest.raises(NotReadyError, match="taken aside"):
        gate.admit(None, None)
    assert (gate.state, gate.version) == (state, 3)
    gate.open()
    gate.admit(3, None)
    gate.commit(4, "d4")
    gate.admit(4, None)


def test_what_serves_nothing_cannot_be_closed_and_is_not_opened() -> None:
    gate = served(3)
    gate.begin(4)
    with pytest.raises(NotReadyError, match="serves nothing already: version 4 is arriving"):
        gate.close(pb.REPLICA_STATE_PAUSED, "taken aside")
    gate.open()
    assert gate.state == UPDATING


def test_dropped_weights_may_come_again_as_the_same_version() -> None:
    gate = served(3)
    gate.drop("dropped")
    assert (gate.state, gate.version, gate.digest) == (STALE, 0, "")
    with pytest.raises(NotReadyError, match="dropped"):
        gate.admit(None, None)
    gate.begin(3)
    gate.arrived(3, "d3")
    gate.commit(3, "d3")
    gate.admit(3, None)


def test_a_base_is_no_version_nothing_is_served_over_it_and_the_adapter_may_come() -> None:
    gate = served(3)
    gate.begin(4)
    gate.lay_base(4)
    assert (gate.state, gate.version) == (STALE, 3)
    with pytest.raises(NotReadyError, match="the base of version 4 has arrived, and its adapter is to come"):
        gate.admit(None, None)
    with pytest.raises(NotReadyError, match="version 4 cannot be committed: it has not arrived here"):
        gate.commit(4, "base")
    gate.begin(4, serving=True)
    assert gate.state == UPDATING, "there is nothing that could be served meanwhile"
    gate.arrived(4, "d4")
    gate.commit(4, "d4")
    gate.admit(4, None)
