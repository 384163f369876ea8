"""The rollout replicas as one generator: every request goes to the replica with the fewest responses outstanding."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace

from baton.clients.rollout import Generation, Prompt, RolloutClient, SamplingParams
from baton.engine import Group, PromptItem
from baton.errors import ServiceFaultError
from services.coordinator.connections import blame
from services.coordinator.digests import check_digests
from services.coordinator.streams import merge


class Rollouts:
    """Spreads prompts over replicas, and vouches for the weights that every sample came from."""

    def __init__(self, replicas: Sequence[RolloutClient], *, batch_size: int, group_size: int, timeout_s: float) -> None:
        """At most `batch_size` prompts a request, `group_size` responses a prompt, `timeout_s` for one request."""
        self.outstanding = {replica.address: 0 for replica in replicas}
        """Prompts sent to each replica and not yet answered."""
        self._replicas = list(replicas)
        self._batch_size = batch_size
        self._group_size = group_size
        self._timeout_s = timeout_s

    def generate(
        self, prompts: Sequence[PromptItem], sampling: SamplingParams, *, episode_id: int, policy_version: int,
        published: Mapping[int, str],
    ) -> AsyncIterator[Group]:  # fmt: skip
        """Yields the groups as they complete, all sampled from exactly `policy_version`.

        Raises DigestMismatchError if a sample's weights are not those in `published` (version -> digest), and whatever a
        replica raises, with its address.
        """
        overrides = replace(sampling, n=sampling.n or self._group_size)

        async def request(replica: RolloutClient, batch: Sequence[PromptItem]) -> AsyncIterator[Group]:
            waiting = {item.group_id: item for item in batch}
            messages = [Prompt(item.group_id, chat=item.messages) for item in batch]
            try:
                with blame(f"rollout at {replica.address}", "deadlines.generate_s"):
                    async for generation in replica.generate(
                        messages, sampling=overrides, episode_id=episode_id, exact_version=policy_version,
                        timeout_s=self._timeout_s,
                    ):  # fmt: skip
                        check_digests(generation.samples, published, replica.address)
                        for group in _groups(generation, waiting):
                            self.outstanding[replica.address] -= 1
                            yield group
                    if waiting:
                        raise ServiceFaultError(f"ended its answer without the groups {', '.join(waiting)}")
            finally:
                self.outstanding[replica.address] -= len(waiting)

        return merge([request(self._least_outstanding(len(batch)), batch) for batch in self._batches(prompts)])

    def _batches(self, prompts: Sequence[PromptItem]) -> list[Sequence[PromptItem]]:
        size = min(self._batch_size, -(-len(prompts) // len(self._replicas))) or 1  # small enough that all have work
        return [prompts[start : start + size] for start in range(0, len(prompts), size)]

    def _least_outstanding(self, prompts: int) -> RolloutClient:
        replica = min(self._replicas, key=lambda replica: self.outstanding[replica.address])
        self.outstanding[replica.address] += prompts
        return replica


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
        groups.append(Group(item, replace(samples, metadata=metadata), [generation.texts[row] for row in indices]))
    return groups
