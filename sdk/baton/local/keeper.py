"""The small process between the supervisor and one service. It guarantees that nothing of the service outlives either.

    supervisor --> keeper --> service --> whatever the service starts

The keeper adopts orphans below it (PR_SET_CHILD_SUBREAPER), so it finds every descendant, even one in a session of its
own whose parent is gone. The kernel sends it SIGTERM when the supervisor dies, however it dies (PR_SET_PDEATHSIG).
Shared memory goes with its resource tracker (`end_below`), temporary files with the directory that they are all put into.

SIGTERM: pass it to the service, wait the grace period, then SIGKILL all that is left. SIGQUIT: SIGKILL all at once.
It exits as the service did: with its code, or with 128 + the number of the signal that ended it.

    python -m baton.local.keeper SUPERVISOR_PID GRACE_SECONDS COMMAND [ARGUMENT...]
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence

from baton.local.process_tree import end_below, kill, kill_below
from baton.local.temporary_files import temporary_files

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SIGNALS = {signal.SIGTERM, signal.SIGQUIT, signal.SIGCHLD}


def end_with_parent(number: signal.Signals, parent: int) -> None:
    """Has the kernel send signal `number` to this process when `parent` dies; exits if that has happened already.

    The kernel means the thread that started this process: a parent must start its children from a thread that stays.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        raise SystemExit(1)


def live_on() -> None:
    """Undoes `end_with_parent`."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0)


def keep(supervisor: int, grace_s: float, command: Sequence[str]) -> int:
    """Runs `command` until it ends or is told to, then ends all that is left of it. Returns the exit code to use."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    end_with_parent(signal.SIGTERM, supervisor)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    with temporary_files() as environment:
        os.environ.update(environment)
        service = _start(command)
        code = _wait(service, grace_s)
        end_below(os.getpid())
    _reap(service)
    return code


def _start(command: Sequence[str]) -> int:
    """Starts the service. Returns its pid."""
    keeper = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        end_with_parent(signal.SIGKILL, keeper)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error.strerror}\n")
        sys.stderr.flush()
    finally:
        os._exit(127)


def _wait(service: int, grace_s: float) -> int:
    """Waits for the service's end, forwarding a stop. Returns its exit code."""
    deadline: float | None = None
    while True:
        left = 3600.0 if deadline is None else max(0.0, deadline - time.monotonic())
        arrived = signal.sigtimedwait(_SIGNALS, left)
        number = arrived.si_signo if arrived else None
        if number == signal.SIGCHLD:
            code = _reap(service)
            if code is not None:
                return code
        elif number == signal.SIGTERM and deadline is None:
            os.kill(service, signal.SIGTERM)
            deadline = time.monotonic() + grace_s
        elif number == signal.SIGQUIT or (deadline is not None and time.monotonic() >= deadline):
            kill([service])
            kill_below(os.getpid())
            deadline = time.monotonic() + 0.05


def _reap(service: int) -> int | None:
    """Collects the children that ended. Returns the service's exit code if it is among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == service:
            ended = os.waitstatus_to_exitcode(status)
            code = ended if ended >= 0 else 128 - ended


if __name__ == "__main__":
    sys.exit(keep(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
