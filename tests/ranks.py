"""Functions run in processes of their own, for tests of what several ranks do together.

The processes are forked from a server that has imported torch and done nothing else, so that each starts at once.
"""

import multiprocessing
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "torch.distributed"])


def _child(connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        connection.send((True, function(*arguments)))
    except BaseException as error:
        connection.send((False, (type(error).__name__, str(error), traceback.format_exc())))


class Rank:
    """One process that runs `function(*arguments)`; both must be picklable."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._connection, theirs = _CONTEXT.Pipe(duplex=False)
        self._process = _CONTEXT.Process(target=_child, args=(theirs, function, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def outcome(self, timeout_s: float) -> tuple[bool, Any]:
        """(True, result) or (False, (class, message, traceback)); fails the test if neither comes in time."""
        try:
            assert self._connection.poll(timeout_s), f"no answer within {timeout_s} s"
            return self._connection.recv()
        except EOFError:
            return False, ("killed", "", "")
        finally:
            self.kill()

    def result(self, timeout_s: float = 120.0) -> Any:
        """What the function returned; fails the test with its traceback if it raised."""
        done, answer = self.outcome(timeout_s)
        assert done, answer[2] or answer[0]
        return answer

    def kill(self) -> None:
        """kill -9, if it still runs."""
        self._process.kill()
        self._process.join(10)


def run_ranks(function: Callable[..., Any], size: int, *arguments: Any, timeout_s: float = 120.0) -> list[Any]:
    """`function(rank, size, *arguments)` on every rank; their results by rank."""
    ranks = [Rank(function, rank, size, *arguments) for rank in range(size)]
    deadline = time.monotonic() + timeout_s
    try:
        return [rank.result(max(deadline - time.monotonic(), 0.1)) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
