"""`baton relay rm`: what a run has in the store is removed."""

import asyncio
import json

from rich.filesize import decimal

from baton.cli.console import console
from baton.cli.relay import AUDIT_S, counted, known_run, open_ledger
from baton.clients import BufferClient
from baton.errors import ConflictError
from baton.run_life import STATE_NAME, Life


def remove_run(address: str, run: str, *, force: bool) -> None:
    """Removes the run, and says what it had.

    Raises NotFoundError for one that the store does not know, and without `force` ConflictError for one that lives.
    """
    console.say(f"run {run} is removed from the store: {asyncio.run(_remove(address, run, force))}")


async def _remove(address: str, run: str, force: bool) -> str:
    async with open_ledger(address) as ledger:
        value, revision = await ledger.get_state(run, STATE_NAME)
        if revision and not force:
            _require_ended(run, json.loads(value))
        episodes = await ledger.list_episodes(run)
        if not revision and not episodes:
            await known_run(ledger, run)  # else says that nobody knows it
        async with BufferClient(address) as buffer:
            await buffer.delete_run(run, timeout_s=AUDIT_S)
    samples = counted(sum(episode.stored_samples for episode in episodes), "sample")
    return f"{counted(len(episodes), 'episode')}, {samples}, {decimal(sum(episode.stored_bytes for episode in episodes))}"


def _require_ended(run: str, state: dict) -> None:
    if not Life(state["life"]).ended:
        where = f"in episode {state['episode']} of {state['num_episodes']}"
        raise ConflictError(
            f"run {run} is {state['life']}, {where}, by what its coordinator said last; end the run first, or if the "
            "coordinator was killed, add --force"
        )
