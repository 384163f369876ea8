"""The background process that keeps the deployment of `baton up`.

    python -m baton.local.supervisor RUN_DIRECTORY PARENT_PID [APP]

It ends with its parent until everything is ready; from then on it lives until SIGTERM or until a service dies.
"""

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

from baton.config import load_run
from baton.errors import BatonError
from baton.local.deployment import Deployment
from baton.local.keeper import end_with_parent, live_on
from baton.local.plan import Plan
from baton.local.run_directory import RunDirectory
from baton.local.supervision import supervise

NAME = "supervisor"


def _note(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stderr.flush()


async def _serve(deployment: Deployment) -> int:
    directory = deployment.plan.directory
    await deployment.start()
    live_on()
    ready = directory.ready_file(NAME)
    partial = ready.with_suffix(".partial")
    partial.write_text(json.dumps({"address": deployment.coordinator, "pid": os.getpid()}))
    partial.replace(ready)
    await deployment.watch()


async def _main(plan: Plan) -> int:
    deployment = Deployment(plan, _note)
    try:
        return await supervise(deployment, _serve(deployment), _note)
    except BatonError as error:
        _note(f"error: {error}")
        deployment.record.error = str(error)
        plan.directory.write_record(deployment.record)
        return 1


def main(arguments: list[str]) -> int:
    """Keeps the deployment of a run directory that `baton up` has prepared. Returns the exit code."""
    path, parent, *app = arguments
    end_with_parent(signal.SIGTERM, int(parent))
    directory = RunDirectory(Path(path))
    config = load_run(directory.run_file)
    return asyncio.run(_main(Plan(config, directory.path.name, directory, app[0] if app else None)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
