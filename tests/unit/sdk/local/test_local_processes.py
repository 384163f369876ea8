"""baton.local.processes and the keeper below it: nothing of a child is ever left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from baton.errors import DeadlineError, ServiceFaultError
from baton.local.process_tree import TRACKERS_S, descendants
from baton.local.processes import Child, exit_words, kill_all, log_tail, ready_file_probe

SLEEP = "import time; time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open('up', 'w').close(); time.sleep(600)"
# starts STUBBORN in a session of its own, from a parent that ends at once, as an engine's helper may be
ORPHANING = (
    "import subprocess, sys, time\n"
    f"start = 'import subprocess, sys; subprocess.Popen([sys.executable, \"-c\", ' + repr({STUBBORN!r}) + '], "
    "start_new_session=True)'\n"
    "subprocess.run([sys.executable, '-c', start], check=True)\n"
)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    """Returns once `condition()` holds; fails the test with `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def processes_in(directory: Path) -> list[int]:
    """Pids of all processes but this one that work in `directory`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):  # it has ended meanwhile
            if entry.readlink() == directory:
                found.append(int(entry.parent.name))
    return [pid for pid in found if pid != os.getpid()]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory of the test's own. Whoever works in it at the end was left behind: killed, and a failure."""
    there = tmp_path / "place"
    there.mkdir()
    monkeypatch.chdir(there)
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a keeper that is killed leaves its directory
    yield there
    monkeypatch.undo()
    left = processes_in(there)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def child(script: str, tmp_path: Path, **options) -> Child:
    return Child("trainer", [sys.executable, "-c", script], tmp_path / "logs" / "trainer.log", **options)


async def test_a_child_that_obeys_sigterm_ends_before_the_grace_period(place, tmp_path):
    process = child(SLEEP, tmp_path, grace_s=60)
    wait_until(lambda: len(processes_in(place)) == 2, "keeper and service")
    began = time.monotonic()
    await process.stop()
    assert time.monotonic() - began < 30


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace_period(place, tmp_path):
    process = child(STUBBORN, tmp_path, grace_s=0.5)
    wait_until((place / "up").exists, "the child runs")
    began = time.monotonic()
    await process.stop()
    assert 0.5 <= time.monotonic() - began < 30
    wait_until(lambda: processes_in(place) == [], "the killed have had their turn to end")


async def test_an_orphan_in_a_session_of_its_own_ends_with_its_service(place, tmp_path):
    process = child(ORPHANING + SLEEP, tmp_path)
    wait_until((place / "up").exists, "the orphan runs")
    wait_until(lambda: len(processes_in(place)) == 3, "keeper, service and orphan")
    await process.stop()
    assert processes_in(place) == []


def test_an_orphan_ends_when_its_service_ends_by_itself(place, tmp_path):
    process = child(ORPHANING + "import os; os.path.exists('up') or time.sleep(1); sys.exit(7)", tmp_path)
    assert process.process.wait(60) == 7
    assert processes_in(place) == []


def test_kill_ends_everything_at_once_even_if_the_keeper_is_frozen(place, tmp_path):
    frozen, other = child(STUBBORN, tmp_path, grace_s=60), child(ORPHANING + SLEEP, tmp_path, grace_s=60)
    wait_until(lambda: len(processes_in(place)) == 5, "both services and the orphan run")
    frozen.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    kill_all([frozen, other])
    assert time.monotonic() - began < 30
    wait_until(lambda: processes_in(place) == [], "the killed have had their turn to end")


SUPERVISOR = """
import sys, time
from pathlib import Path
from baton.local.processes import Child
for name, script in zip("ab", sys.argv[1:]):
    Child(name, [sys.executable, "-c", script], Path("..") / f"{name}.log", grace_s=0.5)
time.sleep(600)
"""


def test_kill_9_of_the_supervisor_leaves_no_child_and_no_orphan(place):
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, STUBBORN, ORPHANING + SLEEP])
    wait_until(lambda: len(descendants(supervisor.pid)) == 5, "two keepers, two services, one orphan")
    supervisor.kill()
    supervisor.wait()
    wait_until(lambda: processes_in(place) == [], "all have ended")


def test_kill_9_of_a_keeper_takes_its_service_along(place, tmp_path):
    process = child(STUBBORN, tmp_path)
    wait_until((place / "up").exists, "the child runs")
    process.process.kill()
    wait_until(lambda: processes_in(place) == [], "the service has ended too")


async def test_a_child_that_ends_before_it_is_ready_fails_at_once_with_the_end_of_its_log(place, tmp_path):
    process = child("for i in range(30): print('line', i)\nraise SystemExit('no memory left')", tmp_path)
    began = time.monotonic()
    with pytest.raises(ServiceFaultError) as caught:
        await process.wait_ready(ready_file_probe(tmp_path / "ready.json"), 60)
    assert time.monotonic() - began < 40
    message = str(caught.value)
    assert "trainer exited with code 1 before it was ready" in message
    assert str(process.log) in message
    assert "no memory left" in message
    assert "line 29\n" in message and "line 10\n" not in message


def test_torchruns_report_does_not_hide_what_the_rank_said(tmp_path):
    log = tmp_path / "trainer.log"
    report = "E1123 15:39:28.910000 7720 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 1) rank: 0"
    log.write_text("\n".join(["no memory left", report, *["torchrun's words"] * 30]))
    assert log_tail(log) == f"the last lines of {log}:\n    no memory left"


# with an engine below it that holds shared memory, and that dies with it, as vLLM's does
SHARING = """
import ctypes, multiprocessing, signal, tempfile, time
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path

def engine():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    memory = shared_memory.SharedMemory(create=True, size=4096)
    Path("partial").write_text("/dev/shm/" + memory.name + " " + tempfile.mkdtemp() + " " + tempfile.mkstemp()[1])
    Path("partial").rename("made")
    time.sleep(600)

resource_tracker.ensure_running()
multiprocessing.get_context("fork").Process(target=engine).start()
time.sleep(600)
"""
ENDS = {
    "kill -9": lambda service: os.kill(pid_of(service), signal.SIGKILL),
    "kill -9 of a frozen one": lambda service: [freeze(service), os.kill(pid_of(service), signal.SIGKILL)],
    "SIGTERM": lambda service: service.process.terminate(),
    "SIGTERM that it does not hear": lambda service: [freeze(service), service.process.terminate()],
    "SIGQUIT": lambda service: service.end_at_once(),
    "a keeper that is frozen too": lambda service: [
        service.process.send_signal(signal.SIGSTOP),
        freeze(service),
        kill_all([service]),
    ],
}


def pid_of(service: Child) -> int:
    return descendants(service.process.pid)[0]


def freeze(service: Child) -> None:
    for pid in descendants(service.process.pid):
        os.kill(pid, signal.SIGSTOP)


@pytest.mark.parametrize("end", ENDS)
def test_no_shared_memory_outlives_a_service_however_it_ends(place, tmp_path, end):
    service = child(SHARING, tmp_path, grace_s=0.5)
    wait_until((place / "made").exists, "the engine has its memory")
    memory, *_ = (Path(name) for name in (place / "made").read_text().split())
    try:
        assert memory.exists()
        ENDS[end](service)
        service.process.wait(60)
        assert not memory.exists()
    finally:
        memory.unlink(missing_ok=True)
    wait_until(lambda: processes_in(place) == [], "all have ended")


@pytest.mark.parametrize("end", [end for end in ENDS if "keeper" not in end])
def test_no_temporary_file_outlives_a_service_however_it_ends(place, tmp_path, end):
    service = child(SHARING, tmp_path, grace_s=0.5)
    wait_until((place / "made").exists, "the engine has its files")
    _, *files = (Path(name) for name in (place / "made").read_text().split())
    assert all(file.exists() for file in files)
    ENDS[end](service)
    service.process.wait(60)
    assert not any(file.exists() for file in files)
    wait_until(lambda: processes_in(place) == [], "all have ended")


def test_a_resource_tracker_that_does_not_end_by_itself_is_killed(place, tmp_path):
    hanging = "open('up', 'w').close(); import time; time.sleep(600)  # from multiprocessing.resource_tracker import main"
    start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {hanging!r}]); "
    service = child(start + SLEEP, tmp_path)
    wait_until((place / "up").exists, "it runs")
    began = time.monotonic()
    service.end_at_once()
    service.process.wait(60)
    assert TRACKERS_S <= time.monotonic() - began < 30
    wait_until(lambda: processes_in(place) == [], "all have ended")


async def test_a_child_that_is_not_ready_in_time_names_the_deadline(place, tmp_path):
    process = child(SLEEP, tmp_path)
    with pytest.raises(DeadlineError, match=r"trainer was not ready within 0.2 s; raise deadlines.startup_s"):
        await process.wait_ready(ready_file_probe(tmp_path / "ready.json"), 0.2)
    kill_all([process])


async def test_what_the_service_wrote_into_its_ready_file_is_the_answer(place, tmp_path):
    script = "import json, os; open('partial', 'w').write(json.dumps({'address': 'h:1'})); os.rename('partial', 'ready'); "
    process = child(script + SLEEP, tmp_path)
    assert await process.wait_ready(ready_file_probe(place / "ready"), 60) == {"address": "h:1"}
    process.check()
    kill_all([process])


def test_check_raises_for_a_death_by_signal_but_not_for_an_end_that_was_asked_for(place, tmp_path):
    process = child("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", tmp_path)
    process.process.wait(60)
    with pytest.raises(ServiceFaultError, match="trainer was ended by SIGSEGV"):
        process.check()
    process.expect_end()
    process.check()


def test_a_command_that_does_not_exist_is_named_in_the_log(place, tmp_path):
    process = Child("store", ["/no/such/server"], tmp_path / "store.log")
    assert process.process.wait(60) == 127
    assert process.log.read_text() == "cannot start /no/such/server: No such file or directory\n"


def test_the_end_by_sigkill_hints_at_memory():
    assert exit_words(137) == exit_words(-9)
    assert "memory" in exit_words(137)
    assert exit_words(1) == "exited with code 1"
