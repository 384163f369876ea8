"""`baton up` and `baton down`: a deployment in the background."""

import asyncio
import os
import signal
import subprocess
import sys
import time

from baton.cli.console import console
from baton.cli.options import DEFAULT_OUTPUT_DIR, App, NewOutputDir, NewRunId, OutputDir, Overrides, RunFile, RunId
from baton.errors import DeadlineError, ServiceFaultError
from baton.local import supervisor
from baton.local.plan import Plan, make_plan
from baton.local.process_tree import kill
from baton.local.processes import ready_file_probe, wait_ready
from baton.local.run_directory import DeploymentRecord, RunDirectory

STOP_S = 20.0
"""How long a supervisor may take to end its deployment; its own deadlines add up to less."""


def up(
    run_file: RunFile, app: App = None, overrides: Overrides = None, run_id: NewRunId = None, output_dir: NewOutputDir = None
) -> None:
    """Start the services of RUNFILE in the background, and return when all are ready.

    It starts no run: a program of yours does, through the coordinator's address.
    """
    plan, remarks = make_plan(run_file, overrides or (), app=app, run_id=run_id, output_dir=output_dir)
    for remark in remarks:
        console.say(f"note: {remark}")
    console.say(f"starting {plan.run_id}; logs are in {plan.directory.path / 'logs'}")
    record = _start_supervisor(plan)
    for name, service in record.services.items():
        console.say(f"{name:<12} {service.address}")
    if record.dashboard_url:
        console.say(f"{'dashboard':<12} {record.dashboard_url}")


def down(run_id: RunId = None, output_dir: OutputDir = DEFAULT_OUTPUT_DIR) -> None:
    """End a deployment, and every process of it."""
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


def _start_supervisor(plan: Plan) -> DeploymentRecord:
    """Starts the background process. Returns its record once all services are ready; otherwise nothing is left."""
    directory, log = plan.directory, plan.directory.log(supervisor.NAME)
    command = [sys.executable, "-m", "baton.local.supervisor", str(directory.path), str(os.getpid())]
    log.parent.mkdir()
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [*command, plan.app] if plan.app else command,
            stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True,
        )  # fmt: skip
    ready = ready_file_probe(directory.ready_file(supervisor.NAME))
    within_s = 3 * plan.config.deadlines.startup_s + 10  # store, buffer and coordinator start one after the other
    try:
        asyncio.run(wait_ready(process, supervisor.NAME, log, ready, within_s))
    except ServiceFaultError:
        record = directory.read_record() if directory.record_file.exists() else None
        raise (ServiceFaultError(record.error) if record and record.error else sys.exc_info()[1]) from None
    except BaseException:  # Ctrl-C too: what this command started ends with it
        process.terminate()
        process.wait(STOP_S)
        raise
    return directory.read_record()
