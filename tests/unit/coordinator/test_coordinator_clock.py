"""The phases of a run and their seconds."""

import time

import pytest

from services.coordinator.clock import PhaseClock
from services.coordinator.events import EventLog
from services.coordinator.state import RunState


def clock() -> tuple[PhaseClock, RunState]:
    state = RunState("run", 1, "")
    return PhaseClock(state, EventLog()), state


def test_a_phase_over_another_has_its_seconds_and_what_began_beneath_is_named_and_back_at_its_end():
    phases, state = clock()
    phases.enter("generate", "rollout")
    with phases.over("train", "trainer"):
        phases.enter("put", "buffer")
        assert (state.phase, state.waiting_for) == ("train", "trainer")
        time.sleep(0.02)
        left = time.monotonic()
    assert (state.phase, state.waiting_for) == ("put", "buffer")
    with phases.over("train", "trainer"):
        back_s = time.monotonic() - left
        phases.enter("")
    seconds = phases.lap()
    assert set(seconds) == {"generate", "train", "put"}
    assert seconds["train"] >= 0.02
    assert 0 <= seconds["put"] <= back_s, "what it lasted by itself"


def test_a_phase_that_ends_by_an_error_is_the_one_that_is_told():
    phases, state = clock()
    phases.enter("generate", "rollout")
    with pytest.raises(ValueError, match="broken"), phases.over("train", "trainer"):
        raise ValueError("broken")
    assert state.phase == "train"
    phases.enter("report")
    assert state.phase == "report"


def test_what_began_and_ended_beneath_another_phase_is_still_named():
    phases, _ = clock()
    phases.enter("generate")
    with phases.over("train", "trainer"):
        phases.enter("put", "buffer")
        phases.enter("")
    assert phases.lap()["put"] == 0
