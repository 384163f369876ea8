"""`baton run`: a deployment in the foreground, one run on it, and nothing left behind."""

import asyncio
import json
from pathlib import Path

from baton.api.coordinator.v1 import coordinator_pb2 as pb
from baton.cli.console import console
from baton.cli.view import RunView, make_view, state_word
from baton.clients import CoordinatorClient
from baton.errors import RunFailedError
from baton.local.deployment import Deployment
from baton.local.plan import Plan
from baton.local.supervision import supervise

_OWN_FILES = ("logs", "ready", "store", "run.yaml", "deployment.json")
"""What the supervisor, not the run, has written into the run's directory."""


def run_in_foreground(plan: Plan) -> int:
    """Starts the deployment, runs the run, and ends everything. Returns the exit code; a failure is raised."""
    with make_view(console) as view:
        return asyncio.run(_run(plan, view))


async def _run(plan: Plan, view: RunView) -> int:
    deployment = Deployment(plan, view.note)
    view.note(f"{'resuming' if plan.resumption else 'starting'} {plan.run_id}; logs are in {plan.directory.path / 'logs'}")
    return await supervise(deployment, _relay(deployment, view), view.note)


async def _relay(deployment: Deployment, view: RunView) -> int:
    await deployment.start()
    status = await deployment.while_alive(_follow(deployment, view))
    if status.state == pb.RUN_STATE_FAILED:
        raise RunFailedError(f"the run failed: {status.error}")
    view.note(f"the run has {state_word(status.state)} after {status.elapsed_s:.1f} s")
    _conclude(Path(status.output_dir), view)
    return 0


async def _follow(deployment: Deployment, view: RunView) -> pb.RunStatus:
    """Starts the run and shows its events. Returns its status after the last."""
    run_id = deployment.plan.run_id
    assert deployment.coordinator is not None
    async with CoordinatorClient(deployment.coordinator) as client:
        wish = deployment.plan.resumption
        status = await client.start_run(
            run_id, resume=wish is not None, resume_step=None if wish is None else wish.global_step
        )
        view.note(f"dashboard: {status.dashboard_url or deployment.record.dashboard_url}")
        async for event in client.watch_run(run_id):
            view.event(event)
        return await client.get_run(run_id)


def _conclude(directory: Path, view: RunView) -> None:
    """Says what the run has come to: the rewards at both ends, and the files; nothing if they are on another machine."""
    summary = directory / "summary.json"
    if not summary.is_file():
        return
    facts = json.loads(summary.read_text())
    first, last = facts["first_reward_mean"], facts["last_reward_mean"]
    if first is not None:
        view.note(f"mean reward: {first:.3f} over the first two episodes, {last:.3f} over the last two")
    for path in sorted(directory.iterdir()):
        if path.name not in _OWN_FILES:
            view.note(f"wrote {path}{'/' if path.is_dir() else ''}")
