"""A run from its first moment to its last: the driver under supervision, and the one end that it comes to.

    STARTING -> RUNNING -> SUCCEEDED           all episodes are done
                        -> STOPPING -> STOPPED a stop was asked for: the call in flight ends or is cancelled, nothing follows
                        -> FAILED              an error, told with its episode and phase; a checkpoint under way is finished

Whatever the end, the reports are written, the state is stored, and the workers are gone before the last event is seen.
"""

import asyncio
import logging
import time
import traceback
from dataclasses import replace

from baton.errors import BatonError, ConflictError
from services.coordinator import liveness
from services.coordinator.clock import StopAsked
from services.coordinator.connections import Addresses
from services.coordinator.driver import Driver
from services.coordinator.state import Life

log = logging.getLogger(__name__)

FINISHED_ON_STOP = frozenset({"train", "publish", "commit", "checkpoint", "export"})
"""Phases whose call in flight a stop lets finish, so that nothing is left half done; in all others it is cancelled."""

LAST_SAVE_S = 5.0
"""How long the end may wait for the state store, which may be what failed."""


class Run:
    """Supervises one driver, from construction on."""

    def __init__(self, driver: Driver, addresses: Addresses) -> None:
        """Starts at once; needs a running event loop."""
        self.driver = driver
        self._watched = {"trainer": addresses.trainer}
        self._watched |= {f"trainer group {name}": address for name, address in addresses.groups.items()}
        self._save_on_stop = False
        self._export = ""
        self._prepared = False
        self._ending = False
        self._task = asyncio.create_task(self._run())

    def stop(self, *, save_checkpoint: bool) -> None:
        """Asks for the end; returns at once. Asking again changes nothing, but may add the wish for a checkpoint."""
        state = self.driver.state
        if self._ending:
            return
        self._save_on_stop |= save_checkpoint
        if not self.driver.clock.stop_asked:
            self.driver.clock.stop_asked = True
            state.life = Life.STOPPING
            self.driver.events.append(state)
            if state.phase not in FINISHED_ON_STOP:
                self._task.cancel()

    async def close(self, grace_s: float) -> None:
        """Stops the run and waits for its end; after `grace_s` even a call that should finish is cut off."""
        self.stop(save_checkpoint=False)
        _, pending = await asyncio.wait([self._task], timeout=grace_s)
        if pending:
            if not self._ending:
                self._task.cancel()
            await asyncio.wait([self._task], timeout=grace_s)

    async def _run(self) -> None:
        state = self.driver.state
        self.driver.events.append(state)
        try:
            await self._supervised()
            life = Life.SUCCEEDED
        except (StopAsked, asyncio.CancelledError):
            asyncio.current_task().uncancel()
            life = await self._stopped()
        except Exception as error:  # the boundary: whatever it is, the run has failed and says so
            life = Life.FAILED
            state.error = _explain(error, state.episode, state.phase)
            log.error("run %s failed: %s", state.run_id, state.error)
            if type(error) is not ConflictError:  # else another coordinator may drive the run, and needs what it would free
                await self._last_checkpoint()
        await self._end(life)

    async def _supervised(self) -> None:
        """The driver's work, cut short by the death of the trainer that it may be waiting for; replicas may come and go."""
        await self.driver.prepare()
        self._prepared = True
        try:
            async with asyncio.TaskGroup() as tasks:
                watches = [
                    tasks.create_task(liveness.watch(self._watched)),
                    tasks.create_task(self.driver.fleet.watch(self.driver.publishing.catch_up)),
                ]
                await self.driver.episodes()
                self._export = await self.driver.finish()
                for watch in watches:
                    watch.cancel()
        except BaseExceptionGroup as errors:
            raise _root(errors) from None

    async def _stopped(self) -> Life:
        """Writes the checkpoint that was asked for, if one was, and waits for one that is being written. Before the run was
        prepared there is nothing to save: the trainer's weights are not the run's yet."""
        saving = self.driver.saving
        self.driver.clock.stop_asked = False
        try:
            await (saving.checkpoint() if self._save_on_stop and self._prepared else saving.settle())
        except (BatonError, asyncio.CancelledError) as error:
            asyncio.current_task().uncancel()
            asked = " that was asked for" if self._save_on_stop else ""
            self.driver.state.error = f"stopped, but the checkpoint{asked} failed: {error or 'cut off'}"
            return Life.FAILED
        return Life.STOPPED

    async def _last_checkpoint(self) -> None:
        """Of a run that has failed: waits for the one that is being written, while its trainer lives. The run's error stays
        the first one."""
        self.driver.clock.stop_asked = False
        try:
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(liveness.watch({"trainer": self._watched["trainer"]}))
                await self.driver.saving.settle()
                watch.cancel()
        except (Exception, asyncio.CancelledError) as lost:  # whatever it is, the run ends
            asyncio.current_task().uncancel()
            log.warning("the checkpoint that was being written is lost: %s", str(_root(lost)) or "cut off")

    async def _end(self, life: Life) -> None:
        self._ending = True
        driver, state = self.driver, self.driver.state
        driver.clock.enter("report")
        state.ended_at = time.time()
        if driver.may_write:
            await self._report(life)
        driver.clock.enter("")
        state.life = life
        if driver.may_write:
            await self._store()
        await driver.close()
        driver.events.append(state)
        log.info("run %s %s after %.1f s", state.run_id, state.life, state.elapsed_s)

    async def _report(self, life: Life) -> None:
        driver, state = self.driver, self.driver.state
        try:
            final = replace(state, life=life)
            await asyncio.to_thread(driver.report.finish, final, driver.clock.total_s, self._export)
        except Exception:  # a full disk must not keep the run from ending
            log.exception("the report of run %s could not be written", state.run_id)

    async def _store(self) -> None:
        try:
            async with asyncio.timeout(LAST_SAVE_S):
                await self.driver.save()
        except (BatonError, TimeoutError) as error:
            log.warning("the end of run %s could not be stored: %s", self.driver.state.run_id, error)


def _root(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _explain(error: BaseException, episode: int, phase: str) -> str:
    """One error for the user: where the run was, and what happened."""
    where = f"episode {episode}, {phase or 'between phases'}"
    if isinstance(error, BatonError):
        return f"{where}: {error}"
    log.error("unexpected", exc_info=error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{where}: {type(error).__name__}: {error} ({frame.filename}:{frame.lineno}); the log has the traceback"
