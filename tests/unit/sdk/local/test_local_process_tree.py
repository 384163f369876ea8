"""baton.local.process_tree: who descends from whom, and which process a pid is."""

import os
import subprocess
import sys

from baton.local.process_tree import descendants, start_time


def test_descendants_include_grandchildren_in_sessions_of_their_own_and_no_zombies():
    script = (
        "import subprocess; sleep = subprocess.Popen(['sleep', '60'], start_new_session=True); "
        "print(sleep.pid, flush=True); sleep.wait()"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    grandchild = int(child.stdout.readline())
    assert {child.pid, grandchild} <= set(descendants(os.getpid()))
    os.kill(grandchild, 9)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    assert child.pid not in descendants(os.getpid())
    assert start_time(child.pid) is None
    child.wait()


def test_a_command_with_brackets_and_blanks_in_its_name_does_not_confuse_the_start_time(tmp_path):
    odd = tmp_path / "a) R 1 (b"
    odd.symlink_to("/bin/sleep")
    child = subprocess.Popen([odd, "60"])
    normal = subprocess.Popen(["sleep", "60"])
    try:
        assert abs(start_time(child.pid) - start_time(normal.pid)) < 500
        assert child.pid in descendants(os.getpid())
    finally:
        for process in (child, normal):
            process.kill()
            process.wait()


def test_the_start_time_of_a_pid_that_nobody_has_is_none():
    child = subprocess.Popen(["true"])
    child.wait()
    assert start_time(child.pid) is None
