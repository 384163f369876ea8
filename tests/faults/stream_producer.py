"""The producer of a stream, a process: `stream_producer.py ADDRESS RUN DIRECTORY [twice]`. It goes by the ledger alone."""

import asyncio
import os
import random
import sys
import uuid
from itertools import count
from pathlib import Path

import stream_plan as plan
from stream_calls import clients, insist

from baton.api.buffer.v1.ledger_pb2 import EpisodeState
from baton.errors import ConflictError
from baton.relay.builtins import concat
from baton.relay.chosen import training_set
from baton.relay.history import RelayHistory

AT_ONCE = 10


class Producer:
    """Rolls out one episode after the other until the test has had enough."""

    def __init__(self, address: str, run_id: str, directory: Path, twice: bool) -> None:
        self.name, self.run_id, self.directory = f"producer-{uuid.uuid4().hex}", run_id, directory
        self.buffer, self.ledger, self.relay = clients(address, twice)
        self.history = RelayHistory(self.relay, run_id, 30)
        self.grants = (directory / "grants").open("a", buffering=1)

    async def run(self) -> None:
        """Tells the lessee, through the ledger, how many episodes there are when it is done."""
        if (await insist(self.ledger.get_state, self.run_id, "episodes"))[1]:
            return
        for episode in count():
            was_newest = await self.produce(episode)
            if was_newest and episode + 1 >= plan.EPISODES and (self.directory / "enough").exists():
                await insist(self.ledger.put_state, self.run_id, "episodes", b"%d" % (episode + 1), expected_revision=0)
                return

    async def produce(self, episode: int) -> bool:
        """Does what is still to do of one episode. Returns False if an earlier process has done it all."""
        try:
            await insist(self.buffer.open_episode, self.run_id, episode, **plan.sizes(episode))
        except ConflictError:  # it was trained and ended, and is not in the store any more
            return False
        state = await self.state(episode)
        if state is None or state.ended or (state.closed and state.training_samples):
            return False
        if not state.closed:
            await self.fill(episode)
            stored = await insist(self.buffer.get_episode, self.run_id, episode)
            if (stored.stored, len(stored.group_ids)) != (plan.SAMPLES, plan.GROUPS):
                raise SystemExit(f"episode {episode} has {stored.stored} samples, but all of its puts were answered")
            await insist(self.buffer.close_episode, self.run_id, episode)
        if plan.is_relayed(episode):
            await self.choose(episode)
        return True

    async def state(self, episode: int) -> EpisodeState | None:
        states = await insist(self.ledger.list_episodes, self.run_id)
        return next((state for state in states if state.episode_id == episode), None)

    async def fill(self, episode: int) -> None:
        """Returns once every group is stored."""
        left = plan.group_ids(episode)
        while left:
            issued = await insist(
                self.ledger.issue_groups,
                self.run_id,
                episode,
                left[:AT_ONCE],
                producer=self.name,
                timeout_s=plan.ISSUE_TIMEOUT_S,
            )
            if issued.dead:
                raise SystemExit(f"groups were given up: {issued.dead}")
            self.grants.writelines(f"{group}\n" for group in issued.granted)
            await insist(self.ledger.report_groups, self.run_id, episode, issued.granted, producer=self.name)
            await asyncio.gather(*(self.roll_out(episode, group) for group in issued.granted))
            left = [group for group in left if group not in {*issued.stored, *issued.granted}]
            if issued.held and not issued.granted:
                await asyncio.sleep(0.02)

    async def roll_out(self, episode: int, group: str) -> None:
        if random.random() < 0.1:
            await asyncio.sleep(random.uniform(0, 0.01))
        await insist(self.buffer.put, self.run_id, episode, plan.make_group(group), request_id=group)

    async def choose(self, episode: int) -> None:
        """This relayed episode and the one before it."""
        await insist(self.relay.trim_history, self.run_id, keep_episodes=2)
        buffers = await insist(self.history.buffers, 2)
        chosen = await asyncio.to_thread(lambda: training_set(concat(buffers), buffers, episode))
        await insist(self.relay.select, self.run_id, episode, chosen.references, chosen.made)


async def main(address: str, run_id: str, directory: str, mode: str = "") -> None:
    async with asyncio.timeout(plan.LIFETIME_S):
        producer = Producer(address, run_id, Path(directory), mode == "twice")
        (Path(directory) / "producer.ready").write_text(str(os.getpid()))
        await producer.run()


asyncio.run(main(*sys.argv[1:]))
