"""`baton relay`: what the ledger of a buffer knows about runs, their samples, and whether all of them are accounted for."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import typer
from google.protobuf.message import Message
from rich.filesize import decimal
from rich.table import Column, Table
from rich.text import Text

from baton.api.buffer.v1 import ledger_pb2 as pb
from baton.api.common.v1 import samples_pb2
from baton.cli.console import console
from baton.clients import LedgerClient
from baton.clients.ledger import FoundSample
from baton.errors import ConfigError, NotFoundError, NotReadyError, ServiceFaultError, ServiceUnavailableError
from baton.local.health import is_serving
from baton.local.run_directory import RunDirectory
from baton.samples import Ragged, Samples

REACH_S = 10.0
"""How long a buffer may take to say that it serves."""
ANSWER_S = 60.0
AUDIT_S = 600.0
"""An audit reads all that the run has in the store."""

SHOWN_ENDS = 8
"""Elements of an array that people see at either end; one that is not longer than both is shown whole."""

UNCUT = 100_000
"""Columns of a terminal that would hold any table."""

# Heading -> field of EpisodeState.
COUNTS = {
    "issued": "issued_groups", "generated": "generated_groups", "failed": "failed_groups", "stored": "stored_samples",
    "bytes": "stored_bytes", "pass": "current_pass", "per pass": "training_samples", "leased": "leased_samples",
    "trained": "trained_samples", "acked": "acked_samples",
}  # fmt: skip
# Column -> (its enum, the prefix of the enum's names).
WORDS: dict[str, tuple[Any, str]] = {
    "reward_status": (samples_pb2.RewardStatus, "REWARD_STATUS_"),
    "finish_reasons": (samples_pb2.FinishReason, "FINISH_REASON_"),
}


def find_buffer(buffer: str | None, output_dir: Path, deployment: str | None) -> str:
    """The address that the user gave as `buffer`, or else of the deployment's buffer.

    Raises ConfigError if it is no address, NotFoundError or NotReadyError if no deployment has a buffer now.
    """
    if buffer is not None:
        host, _, port = buffer.rpartition(":")
        if not host or not (port.isdecimal() or host.startswith("unix")):
            raise ConfigError(
                f"--buffer: got {buffer!r}; must be HOST:PORT, like 10.0.0.1:50051, or the socket that `baton status` shows"
            )
        return buffer
    other = "--buffer HOST:PORT asks one that runs elsewhere"
    try:
        record = RunDirectory.find(output_dir, deployment).read_record()
    except NotFoundError as error:
        raise NotFoundError(f"{error}; {other}") from None
    service = record.services.get("buffer")
    if service and service.pid is not None and not record.is_running:  # its port may be another process's by now
        raise NotFoundError(f"the buffer of {record.run_id} has ended with its deployment; `baton up` starts one, {other}")
    if not service or not service.address:
        raise NotReadyError(f"the buffer of {record.run_id} is not ready yet, as `baton status` shows; {other}")
    return service.address


def show_episodes(address: str, run: str | None, *, as_json: bool) -> None:
    """Prints the run's episodes, or every run's newest one. Raises NotFoundError for a run that the store does not know."""
    episodes, ended = asyncio.run(_episodes(address, run))
    if as_json:
        typer.echo(json.dumps({"episodes": [_fields(episode) for episode in episodes]}))
    elif episodes:
        _print_table(episodes, with_run=not run)
    elif not run:
        console.say(f"the store of the buffer at {address} holds no episode of any run")
    else:
        console.say(f"run {run} has no episode in the store any more: {counted(ended, 'episode')} trained and freed")


def show_sample(address: str, run: str, sample_id: str, *, as_json: bool) -> None:
    """Prints a sample, where it is, and what its steps are. Raises NotFoundError if the store does not hold it."""
    found = asyncio.run(_find(address, run, sample_id))
    if as_json:
        columns = {name: None if value is None else [_finite(value)] for name, value in _columns(found.samples).items()}
        samples = {"size": len(found.samples), **columns}
        facts = {"episode_id": found.episode_id, "position": found.position, "made": found.made}
        typer.echo(json.dumps({**facts, "samples": samples, "steps": found.steps}))
        return
    place = f"episode {found.episode_id}, position {found.position}"
    console.say(f"sample {sample_id} of run {run}: {place}{' among those that the relay function made' * found.made}")
    for name, value in _columns(found.samples).items():
        console.say(f"{name:<20} {_shown(value)}")
    console.say("steps that have it:" if found.steps else "steps that have it: none was leased, or the episode has ended")
    for step in found.steps:
        console.say(f"  {step}")


def show_audit(address: str, run: str, *, as_json: bool) -> bool:
    """Prints the proof; returns whether it holds. Raises NotFoundError for a run that the store does not know."""
    answer = asyncio.run(_audit(address, run))
    if as_json:
        typer.echo(json.dumps(_fields(answer)))
        return not answer.faults
    counts = {
        "episodes in the store": len(answer.episodes),
        "samples in the store": sum(episode.stored_samples for episode in answer.episodes),
        "bytes in the store": decimal(sum(episode.stored_bytes for episode in answer.episodes)),
        "episodes wholly trained": answer.ended_episodes,
        "samples they trained": answer.ended_samples,
        "optimizer steps": answer.optimizer_steps,
        "not trained": len(answer.untrained),
        "given up": len(answer.dead),
        "faults": len(answer.faults),
    }
    for name, count in counts.items():
        console.say(f"{name:<24} {count:>12}")
    lists = {"not trained:": answer.untrained, "given up:": answer.dead, "faults:": answer.faults}
    for heading, lines in lists.items():
        for line in (heading, *(f"  {line}" for line in lines)) if lines else ():
            console.say(line)
    console.say(f"run {run} has {counted(len(answer.faults), 'fault')}" if answer.faults else f"run {run} is clean")
    return not answer.faults


async def _episodes(address: str, run: str | None) -> tuple[list[pb.EpisodeState], int]:
    """The episodes in the store, and if it has none of a run that is asked for, how many have ended."""
    async with open_ledger(address) as ledger:
        episodes = await ledger.list_episodes(run or "")
        if episodes or not run:
            return episodes, 0
        return episodes, (await known_run(ledger, run)).ended_episodes


async def _find(address: str, run: str, sample_id: str) -> FoundSample:
    async with open_ledger(address) as ledger:
        try:
            return await ledger.find_sample(run, sample_id)
        except NotFoundError:
            if not await ledger.list_episodes(run):
                await known_run(ledger, run)  # says so if it is the run that is unknown
            raise


async def _audit(address: str, run: str) -> pb.AuditResponse:
    async with open_ledger(address) as ledger:
        return await known_run(ledger, run)


async def known_run(ledger: LedgerClient, run: str) -> pb.AuditResponse:
    """The run's audit. Raises NotFoundError if it is empty in every respect: a proof about nothing."""
    answer = await ledger.audit(run, timeout_s=AUDIT_S)
    if answer.episodes or answer.ended_episodes or answer.optimizer_steps or answer.dead or answer.faults:
        return answer
    raise NotFoundError(
        f"the store of the buffer at {ledger.address} holds no episode of a run {run!r}, and none has ended; "
        "`baton relay ls` lists the runs that it holds"
    )


@asynccontextmanager
async def open_ledger(address: str) -> AsyncIterator[LedgerClient]:
    """Raises ServiceUnavailableError if nothing answers, NotFoundError if it is no buffer."""
    if not await is_serving(address, REACH_S):
        raise ServiceUnavailableError(
            f"no buffer answers at {address}, or not within {REACH_S:g} s; `baton status` shows which services of a "
            "deployment answer, --buffer HOST:PORT asks another buffer"
        )
    async with LedgerClient(address, timeout_s=ANSWER_S) as client:
        try:
            yield client
        except ServiceFaultError as error:
            if f": {grpc.StatusCode.UNIMPLEMENTED.name}: " not in str(error):
                raise
            raise NotFoundError(
                f"the service at {address} is no buffer, or an older one; `baton status` shows the buffer's address"
            ) from None


def _fields(message: Message) -> dict[str, Any]:
    """The message in the proto's own names; unlike protobuf's JSON, with numbers of 64 bits as numbers."""
    return {field.name: _plain(getattr(message, field.name)) for field in message.DESCRIPTOR.fields}


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return _fields(value)
    if isinstance(value, str | int | float):
        return value
    return [_plain(item) for item in value]


def _columns(samples: Samples) -> dict[str, Any]:
    """The values of the one sample: text, a number, or a list of numbers; None for an absent column."""
    return {field.name: _value(field.name, getattr(samples, field.name)) for field in fields(Samples)}


def _value(name: str, column: Any) -> Any:
    if column is None:
        return None
    if isinstance(column, Ragged):
        return _numbers(column.values)
    if isinstance(column, list):
        return column[0]
    value = _numbers(column)[0]
    if name in WORDS:
        enum, prefix = WORDS[name]
        return enum.Name(value).removeprefix(prefix).lower() if value in enum.values() else str(value)
    return value


def _numbers(array: np.ndarray) -> list[int | float]:
    """Python's numbers; of 32 bits with no more digits than tell them apart."""
    return [float(str(value)) for value in array] if array.dtype.kind == "f" else array.tolist()


def _finite(value: Any) -> Any:
    """The value as JSON can have it: null for what is no finite number."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(value: Any) -> str:
    if value is None:
        return "absent"
    if not isinstance(value, list):
        return str(value)
    if len(value) <= 2 * SHOWN_ENDS:
        return _joined(value)
    return f"{_joined(value[:SHOWN_ENDS])} ... {_joined(value[-SHOWN_ENDS:])} ({len(value)} values)"


def _joined(values: Iterable[int | float]) -> str:
    return " ".join(map(str, values))


def _print_table(episodes: Sequence[pb.EpisodeState], *, with_run: bool) -> None:
    """One row for each, as wide as it must be: a narrow terminal wraps it, and a pipe gets all of it."""
    table = Table(*["run"] * with_run, Column("episode", justify="right"), "kind", box=None)
    for heading in COUNTS:
        table.add_column(heading, justify="right")
    for episode in episodes:
        counts = {heading: getattr(episode, name) for heading, name in COUNTS.items()}
        counts["bytes"] = decimal(episode.stored_bytes)
        cells = (*[episode.run_id] * with_run, episode.episode_id, _kind(episode), *counts.values())
        table.add_row(*(Text(str(cell)) for cell in cells))
    table.width = console.measure(table, options=console.options.update(max_width=UNCUT)).maximum
    console.print(table, crop=False)


def _kind(episode: pb.EpisodeState) -> str:
    stage = "ended" if episode.ended else "closed" if episode.closed else "open"
    return f"{stage}, relayed" if episode.relayed else stage


def counted(number: int, noun: str) -> str:
    """In words: "1 episode", "2 episodes"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
