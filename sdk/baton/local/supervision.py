"""Running a deployment so that nothing of it is left, however the work on it ends: well, badly, or by a signal."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from baton.local.deployment import Deployment

_CANCEL_S = 2.0
"""How long work that was cancelled may take to notice."""
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """Counts the requests to stop: the first asks for an orderly end, the second for an immediate one."""

    def __init__(self) -> None:
        """Takes over SIGINT, SIGTERM and SIGHUP in the running event loop."""
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self.number: signal.Signals | None = None
        for number in _STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._receive, number)

    def _receive(self, number: signal.Signals) -> None:
        (self.second if self.first.is_set() else self.first).set()
        self.number = self.number or number


async def supervise(deployment: Deployment, work: Coroutine[Any, Any, int], note: Callable[[str], None]) -> int:
    """Runs `work`, which starts and uses `deployment`, and ends the deployment when it is over.

    Returns work's result or raises its error; after a signal, 128 + the signal's number. `note` gets lines for the user.
    """
    signals = StopSignals()
    task = asyncio.ensure_future(work)
    try:
        if await _done_before(signals.first, task):
            return task.result()
        assert signals.number is not None
        note(f"{signals.number.name}: stopping; once more ends everything at once")
        await _unless(signals.second, deployment.stop_run())
        return 128 + signals.number
    finally:
        task.cancel()
        try:
            await _unless(signals.second, _end(task, deployment))
        finally:
            deployment.kill()


async def _end(task: asyncio.Future[int], deployment: Deployment) -> None:
    await asyncio.wait({task}, timeout=_CANCEL_S)
    await deployment.stop()


async def _done_before(event: asyncio.Event, task: asyncio.Future[Any]) -> bool:
    """Waits for `task`, or for `event` if that comes first. Returns whether the task is done."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        return task.done()
    finally:
        waiting.cancel()


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Does `work`, and gives it up when `event` comes."""
    task = asyncio.ensure_future(work)
    if not await _done_before(event, task):
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
