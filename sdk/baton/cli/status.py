"""`baton status`: which services answer, and how far the run is."""

import asyncio
import json
from pathlib import Path
from typing import Any

import typer
from google.protobuf.json_format import MessageToDict
from rich.table import Table

from baton.api.coordinator.v1 import coordinator_pb2 as pb
from baton.cli.console import console
from baton.cli.view import state_word
from baton.clients import CoordinatorClient, TrainerClient
from baton.errors import BatonError
from baton.local.health import is_answering, is_serving
from baton.local.run_directory import DeploymentRecord, RunDirectory

ASK_S = 2.0


def show_status(output_dir: Path, run_id: str | None, *, as_json: bool) -> None:
    """Prints what the deployment's services say now."""
    directory = RunDirectory.find(output_dir, run_id)
    record = directory.read_record()
    facts = {
        "run_id": record.run_id, "directory": str(directory.path), "running": record.is_running,
        "error": record.error, "dashboard_url": record.dashboard_url, **asyncio.run(_ask(record)),
    }  # fmt: skip
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        _print(facts)


async def _ask(record: DeploymentRecord) -> dict[str, Any]:
    """What the services say now: {"services": {name: {address, pid, health}}, "run": the run's status or None}."""
    names = list(record.services)
    answers = await asyncio.gather(*(_health(name, record) for name in names))
    services = {
        name: {"address": record.services[name].address, "pid": record.services[name].pid, "health": health}
        for name, health in zip(names, answers, strict=True)
    }
    coordinator = services.get("coordinator", {"health": "not started"})
    trainers = [name for name in names if name.startswith("trainer") and services[name]["health"] == "serving"]
    for name in trainers:
        services[name]["roles"] = await _roles(services[name]["address"])
    return {"services": services, "run": await _run(coordinator["address"]) if coordinator["health"] == "serving" else None}


async def _health(name: str, record: DeploymentRecord) -> str:
    service = record.services[name]
    if service.pid is not None and not record.is_running:
        return "ended"  # its port may be another process's by now
    answers = await (is_answering if name == "store" else is_serving)(service.address or "", ASK_S)
    return "serving" if answers else "not answering"


async def _roles(address: str) -> list[str]:
    """The roles whose models a trainer group holds; none while it does not say."""
    async with TrainerClient(address, timeout_s=ASK_S) as client:
        try:
            return [role.role for role in (await client.get_status()).roles]
        except BatonError:
            return []


async def _run(address: str) -> dict[str, Any] | None:
    """The run's status in the proto's own names, its state without the prefix; None if there is no run."""
    async with CoordinatorClient(address, timeout_s=ASK_S) as client:
        try:
            answer = await client.get_run()
        except BatonError:
            return None
    if answer.state == pb.RUN_STATE_UNSPECIFIED:
        return None
    run = MessageToDict(answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    numbers = {name: int(run[name]) for name in ("episode", "num_episodes", "policy_version", "global_step")}
    return run | numbers | {"state": state_word(answer.state)}


def _print(facts: dict[str, Any]) -> None:
    table = Table("service", "address", "pid", "health", "roles", box=None)
    for name, service in facts["services"].items():
        place, roles = str(service["pid"] or "elsewhere"), ", ".join(service.get("roles", ()))
        table.add_row(name, service["address"], place, service["health"], roles)
    console.say(f"{facts['run_id']}: {'up' if facts['running'] else 'not running'} ({facts['directory']})")
    if facts["error"]:
        console.say(f"it ended: {facts['error']}")
    console.print(table)
    if run := facts["run"]:
        place = f"episode {run['episode']} of {run['num_episodes']}" + (f", {run['phase']}" if run["phase"] else "")
        console.say(f"run {run['run_id']}: {run['state']}, {place}; policy version {run['policy_version']}")
        if run["error"]:
            console.say(f"error: {run['error']}")
    if facts["running"] and facts["dashboard_url"]:
        console.say(f"dashboard: {facts['dashboard_url']}")
