"""`baton up`: a deployment in the background."""

import asyncio
import os
import subprocess
import sys

from baton.cli.console import console
from baton.cli.down import STOP_S
from baton.errors import ServiceFaultError
from baton.local import supervisor
from baton.local.plan import Plan
from baton.local.processes import ready_file_probe, wait_ready
from baton.local.run_directory import DeploymentRecord


def start_in_background(plan: Plan) -> None:
    """Returns once all services are ready, after their addresses are printed."""
    console.say(f"starting {plan.run_id}; logs are in {plan.directory.path / 'logs'}")
    record = _start_supervisor(plan)
    for name, service in record.services.items():
        console.say(f"{name:<12} {service.address}")
    if record.dashboard_url:
        console.say(f"{'dashboard':<12} {record.dashboard_url}")


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
    except ServiceFaultError as error:
        reason = directory.read_record().error if directory.record_file.exists() else None
        raise ServiceFaultError(reason or str(error)) from None
    except BaseException:  # Ctrl-C too: what this command started ends with it
        process.terminate()
        process.wait(STOP_S)
        raise
    return directory.read_record()
