"""`baton down`: the end of a deployment, in the background or in another terminal."""

import os
import signal
import time
from pathlib import Path

from baton.cli.console import console
from baton.errors import DeadlineError
from baton.local.process_tree import kill
from baton.local.run_directory import DeploymentRecord, RunDirectory

STOP_S = 20.0
"""How long a supervisor may take to end its deployment; its own deadlines add up to less."""


def end_deployment(output_dir: Path, run_id: str | None) -> None:
    """Returns once nothing of the deployment is left. Raises DeadlineError if its supervisor had to be killed."""
    record = RunDirectory.find(output_dir, run_id).read_record()
    if not record.is_running:
        console.say(f"{record.run_id} is not running")
        return
    os.kill(record.supervisor_pid, signal.SIGTERM)
    if not _ends_within(record, STOP_S):
        kill([record.supervisor_pid])  # its services notice, and end themselves
        raise DeadlineError(f"the supervisor of {record.run_id} did not end within {STOP_S:g} s, so it was killed")
    console.say(f"ended {record.run_id}: {', '.join(_own(record)) or 'it had started nothing'}")


def _own(record: DeploymentRecord) -> list[str]:
    return [name for name, service in record.services.items() if service.pid is not None]


def _ends_within(record: DeploymentRecord, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while record.is_running and time.monotonic() < deadline:
        time.sleep(0.05)
    return not record.is_running
