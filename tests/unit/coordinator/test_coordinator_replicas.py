"""The life of a replica as the coordinator sees it, and who gets the next request: pure logic, no clock of its own."""

import pytest

from services.coordinator.replicas import REFUSALS, SUSPECT_S, Replica, ReplicaHealth, least_outstanding

HEALTHY, SUSPECT, DEAD, RESTARTING, STALE, PAUSED = ReplicaHealth


class Seen:
    """A replica that serves version 4, its states so far, and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.states: list[ReplicaHealth] = []
        self.replica = Replica(
            "r:1", lambda replica, before: self.states.append(replica.health), lambda: self.now, version=4
        )

    def refuse(self, times: int = 1) -> None:
        for _ in range(times):
            self.replica.refused("connection refused")


def test_the_whole_life_from_a_kill_to_the_next_version() -> None:
    seen = Seen()
    seen.refuse(REFUSALS)
    seen.refuse(5)
    for _ in range(3):
        seen.replica.silent("loads its model")
    seen.replica.answered(0, serving=True, wanted=5)
    assert seen.replica.reason == "has version 0, not 5"
    seen.replica.answered(0, serving=True, wanted=5)
    seen.replica.serves(5)
    assert seen.states == [SUSPECT, DEAD, RESTARTING, STALE, HEALTHY]
    assert (seen.replica.deaths, seen.replica.version, seen.replica.reason) == (1, 5, "")


@pytest.mark.parametrize("refusals", [1, REFUSALS - 1])
def test_a_refusal_alone_may_be_a_full_backlog(refusals: int) -> None:
    seen = Seen()
    seen.refuse(refusals)
    seen.replica.answered(4, serving=True, wanted=4)
    assert seen.states == [SUSPECT, HEALTHY] and seen.replica.deaths == 0
    seen.refuse(refusals)
    assert seen.replica.health is SUSPECT  # they are counted anew


def test_a_broken_call_and_one_refusal_are_proof() -> None:
    seen = Seen()
    seen.replica.broke("connection reset")
    assert seen.replica.health is SUSPECT
    seen.refuse()
    assert seen.replica.health is DEAD


def test_a_broken_call_and_a_silence_are_proof_too_for_the_port_may_be_taken_again_at_once() -> None:
    seen = Seen()
    seen.replica.broke("connection reset")
    seen.replica.silent("loads its model")
    seen.replica.silent("loads its model")
    assert seen.states == [SUSPECT, DEAD, RESTARTING]


def test_a_broken_call_to_a_process_that_answers_changes_nothing() -> None:
    seen = Seen()
    seen.replica.broke("connection reset")
    seen.replica.answered(4, serving=True, wanted=4)
    assert seen.states == [SUSPECT, HEALTHY] and seen.replica.deaths == 0


def test_a_silence_after_a_refusal_is_a_process_that_starts() -> None:
    seen = Seen()
    seen.refuse()
    seen.replica.silent("loads its model")
    seen.replica.silent("loads its model")
    assert seen.states == [SUSPECT, DEAD, RESTARTING] and seen.replica.deaths == 1


def test_a_process_that_accepts_and_never_answers_is_dead_in_the_end() -> None:
    seen = Seen()
    seen.replica.silent("frozen")
    seen.now = SUSPECT_S - 1
    seen.replica.silent("frozen")
    assert seen.states == [SUSPECT]
    seen.now = SUSPECT_S
    seen.replica.silent("frozen")
    assert seen.states == [SUSPECT, DEAD]


@pytest.mark.parametrize("first", ["looked healthy", "was suspected"])
def test_a_process_that_was_replaced_unnoticed_counts_as_a_death(first: str) -> None:
    seen = Seen()
    if first == "was suspected":
        seen.refuse()
    seen.replica.answered(0, serving=True, wanted=4)
    assert seen.states[-2:] == [DEAD, STALE] and seen.replica.deaths == 1


def test_a_start_that_fails_is_another_death() -> None:
    seen = Seen()
    seen.refuse(REFUSALS)
    seen.replica.silent("loads its model")
    seen.refuse()
    assert seen.replica.health is DEAD and seen.replica.deaths == 2


def test_a_start_that_is_not_reached_in_time_goes_on() -> None:
    seen = Seen()
    seen.refuse(REFUSALS)
    seen.replica.silent("loads its model")
    for _ in range(REFUSALS):
        seen.replica.unreached("it accepts no connection within 10 s")
    assert (seen.states, seen.replica.deaths) == ([SUSPECT, DEAD, RESTARTING], 1)
    seen.refuse()
    assert seen.replica.health is DEAD and seen.replica.deaths == 2


def test_one_that_served_and_is_not_reached_again_and_again_is_dead() -> None:
    seen = Seen()
    for _ in range(REFUSALS):
        seen.replica.unreached("it accepts no connection within 10 s")
    assert (seen.states, seen.replica.deaths) == ([SUSPECT, DEAD], 1)


def test_one_that_lives_but_lost_its_update_is_stale_and_not_dead() -> None:
    seen = Seen()
    seen.replica.answered(4, serving=False, wanted=5, why="the update to version 5 failed: a member died")
    assert (seen.states, seen.replica.deaths) == ([STALE], 0)
    assert seen.replica.reason == "the update to version 5 failed: a member died"


def test_while_weights_arrive_its_own_word_means_nothing_but_its_death_does() -> None:
    seen = Seen()
    seen.replica.updating = True
    seen.replica.answered(4, serving=False, wanted=4)
    assert seen.states == []
    seen.refuse(REFUSALS)
    assert seen.replica.health is DEAD


def test_a_replica_at_the_wanted_version_is_healthy_whatever_it_was() -> None:
    seen = Seen()
    seen.refuse(REFUSALS)
    seen.replica.answered(4, serving=True, wanted=4)
    assert seen.replica.health is HEALTHY


@pytest.mark.parametrize(("wanted", "afterwards"), [(4, HEALTHY), (5, STALE)])
def test_a_paused_replica_has_not_died_and_is_behind_if_the_run_went_on(wanted: int, afterwards: ReplicaHealth) -> None:
    seen = Seen()
    seen.replica.paused("it is paused; call Resume")
    assert (seen.replica.health, seen.replica.reason) == (PAUSED, "it is paused; call Resume")
    seen.replica.answered(4, serving=True, wanted=wanted)
    assert seen.states == [PAUSED, afterwards] and seen.replica.deaths == 0


def made(**outstanding: int) -> list[Replica]:
    return [Replica(address, outstanding=count) for address, count in outstanding.items()]


def test_the_fewest_outstanding_prompts_win_among_the_healthy_only() -> None:
    replicas = made(a=3, b=1, c=0)
    replicas[2].refused("gone")
    assert least_outstanding(replicas).address == "b"
    for replica in replicas[:2]:
        replica.silent("slow")
    assert least_outstanding(replicas) is None


def test_home_is_preferred_while_it_is_healthy() -> None:
    replicas = made(a=3, b=1)
    assert least_outstanding(replicas, "a").address == "a"
    assert least_outstanding(replicas, "elsewhere").address == "b"
    replicas[0].silent("slow")
    assert least_outstanding(replicas, "a").address == "b"


def test_one_of_another_model_stays_out_though_it_serves_until_another_process_takes_its_place() -> None:
    seen = Seen()
    seen.replica.is_process("first", hangs=False)
    seen.replica.is_unfit("its tokenizer is another")
    for _ in range(2):
        seen.replica.is_process("first", hangs=False)
        seen.replica.answered(4, serving=True, wanted=4)
        assert (seen.replica.health, seen.replica.reason) == (STALE, "its tokenizer is another")
        assert not seen.replica.takes_weights
    seen.replica.is_process("second", hangs=False)
    seen.replica.answered(0, serving=True, wanted=4)
    assert seen.replica.health is STALE and seen.replica.takes_weights


def test_one_whose_engine_hangs_in_an_update_takes_no_weights_until_it_is_out_of_it() -> None:
    seen = Seen()
    for hangs in (True, False):
        seen.replica.is_process("first", hangs=hangs)
        seen.replica.answered(4, serving=False, wanted=5, why="the update failed")
        assert (seen.replica.health, seen.replica.takes_weights) == (STALE, not hangs)
