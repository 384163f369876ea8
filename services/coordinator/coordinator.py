"""The coordinator: at most one run in the life of the process, started, stopped, resumed and watched by its id."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

from baton.config import RunConfig
from baton.engine import Engine
from baton.errors import ConflictError, InvalidRequestError, NotFoundError
from services.coordinator.connections import Addresses, Connections
from services.coordinator.driver import Driver
from services.coordinator.events import Event
from services.coordinator.relay import relay_function
from services.coordinator.report import RunReport
from services.coordinator.resuming import Resume
from services.coordinator.rewards import reward_functions
from services.coordinator.run import Run
from services.coordinator.state import Life, RunState

_RUN_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")

STOP_GRACE_S = 10.0
"""How long SIGTERM lets the call in flight go on: enough for a weight update, so that no replica is left half way."""


class Coordinator:
    """What the gRPC and HTTP faces call."""

    def __init__(
        self, config: RunConfig, engine: Engine, addresses: Addresses, *, output_dir: Path | None, dashboard_url: str
    ) -> None:
        """`output_dir` is the run's own folder; None: one of the run's name in `runtime.output_dir`.

        Raises ConfigError if the run file asks for something that this coordinator does not do.
        """
        engine.require_agrees(config)
        config.require_startable(has_relay_sample_fn=engine.relay_sample_fn is not None)
        reward_functions(config, engine)
        relay_function(config, engine)
        config.logging.require_installed()
        self._config = config
        self._engine = engine
        self._addresses = addresses
        self._output_dir = output_dir
        self._dashboard_url = dashboard_url
        self.run: Run | None = None
        """The present run, or the last one."""

    def start_run(self, run_id: str, resume: Resume | None = None) -> Event:
        """Begins the run, or goes on with it; one that is at work stays as it is. Raises ConflictError if this process has a
        run of another id."""
        if not _RUN_ID.fullmatch(run_id):
            raise InvalidRequestError(f"run id {run_id!r}: must be letters, digits, '.', '_' and '-', not with '.' first")
        again = resume is not None and self.run is not None and self.run.driver.state.life.ended
        if self.run is None or (again and self.run.driver.state.run_id == run_id):
            self.run = self._new_run(run_id, resume)
        elif self.run.driver.state.run_id != run_id:
            state = self.run.driver.state
            raise ConflictError(
                f"this coordinator has run {state.run_id!r} ({state.life}), and drives one run in its life; start another "
                f"coordinator for {run_id!r}"
            )
        return self.get_run(run_id)

    def stop_run(self, run_id: str, *, save_checkpoint: bool) -> Event:
        """Asks the run to end; an ended run stays as it is. Raises NotFoundError for another id."""
        self._named(run_id).stop(save_checkpoint=save_checkpoint)
        return self.get_run(run_id)

    def get_run(self, run_id: str = "") -> Event:
        """A snapshot; an empty id means the present run, and then it need not exist. Raises NotFoundError otherwise."""
        if self.run is None and not run_id:
            return Event.now(self._new_state("", "", Life.UNSPECIFIED))
        return Event.now(self._named(run_id).driver.state)

    def watch_run(self, run_id: str = "") -> AsyncIterator[Event]:
        """Every event of the run, from the first. Raises NotFoundError if there is no such run."""
        return self._named(run_id).driver.events.follow()

    async def close(self) -> None:
        """Stops the run, if there is one, and waits for its end."""
        if self.run is not None:
            await self.run.close(STOP_GRACE_S)

    def _named(self, run_id: str) -> Run:
        if self.run is None:
            raise NotFoundError("no run was started; call StartRun first")
        if run_id not in ("", self.run.driver.state.run_id):
            raise NotFoundError(f"there is no run {run_id!r} here; this coordinator has {self.run.driver.state.run_id!r}")
        return self.run

    def _new_run(self, run_id: str, resume: Resume | None) -> Run:
        folder = (self._output_dir or Path(self._config.runtime.output_dir) / run_id).resolve()
        report = RunReport(folder, resuming=resume is not None)
        state = self._new_state(run_id, str(report.folder), Life.STARTING)
        services = Connections.open(self._addresses, self._config.deadlines)
        return Run(Driver(self._config, self._engine, services, state, report, resume), self._addresses)

    def _new_state(self, run_id: str, folder: str, life: Life) -> RunState:
        return RunState(run_id, self._config.runtime.num_episode, folder, self._dashboard_url, life)
