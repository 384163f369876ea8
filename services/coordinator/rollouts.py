"""The rollout replicas as one generator: every request goes to the replica with the fewest responses outstanding, and to
another one if that replica dies."""

import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from hashlib import blake2b
from typing import Protocol

from baton.clients.rollout import Generation, Prompt, SamplingParams
from baton.errors import DeadlineError, NotReadyError, ServiceFaultError, ServiceUnavailableError
from baton.flow import Group, PromptItem
from baton.samples import FinishReason
from services.coordinator.connections import blame
from services.coordinator.digests import check_digests
from services.coordinator.fleet import Fleet
from services.coordinator.replicas import Replica, ReplicaHealth
from services.coordinator.streams import merge

log = logging.getLogger(__name__)

LOST = ServiceUnavailableError, NotReadyError
"""What a request raises whose replica died, was paused, or is another process now, of another version or none yet."""


MOST = 256
"""Prompts in one request at most, whatever it is for; it has to stay below the limit of a message."""


class Lost(Protocol):
    """Is told which groups were lost with their replica, why, and whether they are asked for again."""

    async def __call__(self, group_ids: Collection[str], reason: str, *, again: bool) -> None: ...



class Rollouts:
    """Spreads prompts over replicas, and vouches for the weights that every sample came from."""

    def __init__(
        self, fleet: Fleet, *, batch_size: int, group_size: int, timeout_s: float, max_attempts: int, ranking: bool = False
    ) -> None:  # fmt: skip
        """At most `batch_size` prompts a request, `group_size` responses a prompt, `timeout_s` for one request, which goes
        out at most `max_attempts` times. With `ranking` the longest prompts go first."""
        self._fleet = fleet
        self._batch_size = batch_size
        self._group_size = group_size
        self._timeout_s = timeout_s
        self._max_attempts = max_attempts
        self._ranking = ranking
        self.seed: int | None = None
        """Has every response depend on this, its episode, its group, and how often that was asked for; None: on what the
        replica has drawn before. With it a replica gets what it gets in one request, so that what it computes together does
        not depend on who came first."""
        self._homes: dict[str, str] = {}
        self._asked: Counter[str] = Counter()  # by group, in this episode
        self._episode = -1

    @property
    def outstanding(self) -> dict[str, int]:
        """Prompts sent to each replica, by its address, and not yet answered."""
        return {replica.address: replica.outstanding for replica in self._fleet.replicas}

    def generate(
        self, prompts: Sequence[PromptItem], sampling: SamplingParams, *, episode_id: int, published: Mapping[int, str],
        lost: Lost | None = None,
    ) -> AsyncIterator[Group]:  # fmt: skip
        """Yields the groups as they complete, each once, all sampled from exactly the version that the fleet serves.

        A group stays with its replica for the whole episode, while that is healthy. What a replica has not answered when
        it dies goes to another one, once `lost` knows. Raises DigestMismatchError if a sample's weights are not those in
        `published` (version -> digest), ServiceUnavailableError if no replica is left, and whatever else a replica raises,
        with its address.
        """
        if episode_id != self._episode:
            self._episode, self._homes, self._asked = episode_id, {}, Counter()
        asked = dict(self._asked)
        self._asked.update(item.group_id for item in prompts)

        async def answer(batch: Sequence[PromptItem]) -> AsyncIterator[Group]:
            waiting, attempts = {item.group_id: item for item in batch}, 0
            seed = self._seed_of(episode_id, asked.get(batch[0].group_id, 0)) if sampling.seed is None else sampling.seed
            overrides = replace(sampling, n=sampling.n or self._group_size, seed=seed)
            while waiting:
                replica = await self._fleet.take(len(waiting), self._homes.get(batch[0].group_id))
                deaths = replica.deaths
                self._homes |= dict.fromkeys(waiting, replica.address)
                try:
                    async with aclosing(self._request(replica, waiting, overrides, episode_id, published)) as groups:
                        async for group in groups:
                            yield group
                except (*LOST, DeadlineError) as error:
                    attempts = await self._give_up(replica, deaths, waiting, attempts, error, lost)
                finally:
                    replica.outstanding -= len(waiting)

        return self._spread(prompts, asked, answer)

    def _seed_of(self, episode_id: int, times: int) -> int | None:
        """Of a request for groups that were asked for so many times before; which group it is, the replica adds."""
        if self.seed is None:
            return None
        mixed = blake2b(f"{self.seed}/{episode_id}/{times}".encode(), digest_size=8).digest()
        return int.from_bytes(mixed, "little") >> 2

    async def _spread(
        self, prompts: Sequence[PromptItem], asked: Mapping[str, int],
        answer: Callable[[Sequence[PromptItem]], AsyncIterator[Group]],
    ) -> AsyncIterator[Group]:  # fmt: skip
        """All requests at once, in the order in which they go to the replicas."""
        if self._ranking and len(prompts) > 1:
            lengths = await self._lengths(prompts)
            prompts = [prompts[index] for index in sorted(range(len(prompts)), key=lambda index: -lengths[index])]
        async with aclosing(merge([answer(batch) for batch in self._batches(prompts, asked)])) as groups:
            async for group in groups:
                yield group

    async def _lengths(self, prompts: Sequence[PromptItem]) -> list[int]:
        """What each prompt is ranked by, as the replicas tell it, of which any may."""
        lengths: list[int] = []
        failures = 0
        while len(lengths) < len(prompts):
            replica = await self._fleet.take(0)
            part = [_message(item) for item in prompts[len(lengths) : len(lengths) + MOST]]
            try:
                with blame(f"rollout at {replica.address}", "deadlines.generate_s"):
                    async with self._fleet.while_alive(replica):
                        lengths += await self._fleet.client(replica).measure_prompts(part, timeout_s=self._timeout_s)
            except LOST as error:
                failures += 1
                if failures == self._max_attempts:
                    raise
                if isinstance(error, ServiceUnavailableError):
                    replica.broke(str(error))
                await self._fleet.look(replica)
        return lengths

    async def _request(
        self, replica: Replica, waiting: dict[str, PromptItem], sampling: SamplingParams, episode_id: int,
        published: Mapping[int, str],
    ) -> AsyncIterator[Group]:  # fmt: skip
        """One request; takes out of `waiting` what is answered. The replica was taken with all of `waiting`."""
        messages = [_message(item) for item in waiting.values()]
        with blame(f"rollout at {replica.address}", "deadlines.generate_s"):
            async with self._fleet.while_alive(replica):
                async for generation in self._fleet.client(replica).generate(
                    messages, sampling=sampling, episode_id=episode_id, exact_version=self._fleet.version,
                    timeout_s=self._timeout_s,
                ):  # fmt: skip
                    if (generation.samples.finish_reasons == FinishReason.ABORT).any():
                        raise NotReadyError("responses were aborted; whole ones are asked for again")
                    check_digests(generation.samples, published, replica.address)
                    for group in _groups(generation, waiting):
                        replica.outstanding -= 1
                        yield group
            if waiting:
                raise ServiceFaultError(f"ended its answer without the groups {', '.join(waiting)}")

    async def _give_up(
        self, replica: Replica, deaths: int, waiting: Mapping[str, PromptItem], attempts: int, error: Exception,
        lost: Lost | None,
    ) -> int:  # fmt: skip
        """After a request was lost to a replica that had died `deaths` times, which `lost` is told. Returns the attempts so
        far, of which one that a pause ended is none, or kept over its deadline; raises the error of the last one, and any
        other DeadlineError."""
        if isinstance(error, ServiceUnavailableError):
            replica.broke(str(error))
        await self._fleet.look(replica)
        for group_id in waiting:
            self._homes.pop(group_id, None)
        if not waiting or replica.health is ReplicaHealth.PAUSED:
            return attempts
        if isinstance(error, DeadlineError):  # else a pause may have kept the request, which is not its fault
            raise error
        attempts += 1
        if lost:
            await lost(waiting, str(error), again=attempts < self._max_attempts)
        if attempts == self._max_attempts:
            raise type(error)(
                f"the groups {', '.join(waiting)} were lost with their replica {attempts} times, which is "
                f"store.max_attempts; the last time: {error}"
            ) from error
        if replica.deaths == deaths:  # else it was told with the death
            log.warning("rollout at %s: %d unanswered groups go elsewhere: %s", replica.address, len(waiting), error)
        return attempts

    def _batches(self, prompts: Sequence[PromptItem], asked: Mapping[str, int]) -> list[Sequence[PromptItem]]:
        """Cut so small that all replicas have work; prompts with different homes or seeds are not put together."""
        most = self._batch_size if self.seed is None or self._ranking else MOST
        size = min(most, -(-len(prompts) // (len(self._fleet.healthy()) or 1))) or 1
        by_home: dict[tuple[str | None, int], list[PromptItem]] = {}
        for item in prompts:
            times = 0 if self.seed is None else asked.get(item.group_id, 0)
            by_home.setdefault((self._homes.get(item.group_id), times), []).append(item)
        return [items[start : start + size] for items in by_home.values() for start in range(0, len(items), size)]


def _message(item: PromptItem) -> Prompt:
    if item.token_ids is None:
        return Prompt(item.group_id, chat=item.messages)
    return Prompt(item.group_id, token_ids=item.token_ids, continues=item.continues)


def _groups(generation: Generation, waiting: dict[str, PromptItem]) -> list[Group]:
    """The message's groups, each with its prompt, which is taken out of `waiting`."""
    rows: dict[str, list[int]] = {}
    for row, group_id in enumerate(generation.samples.group_ids):
        rows.setdefault(group_id, []).append(row)
    groups = []
    for group_id, indices in rows.items():
        if group_id not in waiting:
            raise ServiceFaultError(f"answered group {group_id}, which it was not asked for or had answered before")
        item = waiting.pop(group_id)
        samples = generation.samples.take(indices)
        metadata = [json.dumps(item.metadata)] * len(indices)
        texts = [generation.texts[row] for row in indices]
        of_prompt = generation.prompt_logprobs.get(group_id)
        groups.append(Group(item, replace(samples, metadata=metadata), texts, prompt_logprobs=of_prompt))
    return groups
