"""Publishing weights: one transaction over the trainer and every rollout replica.

    open group -> UpdateWeights on all replicas, PublishWeights on the trainer -> compare digests -> CommitWeights on all

The broadcast itself runs between the services; this module only says when, and checks what each side received.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from baton.api.common.v1 import weights_pb2
from baton.clients.rollout import RolloutClient
from baton.clients.trainer import TrainerClient
from baton.errors import DigestMismatchError


@dataclass(frozen=True, slots=True)
class Publication:
    """One committed weight update: seconds per phase are the slowest participant's."""

    policy_version: int
    weights_digest: str
    bytes: int
    gather_s: float
    wire_s: float
    load_s: float
    digest_s: float
    pause_s: float


class WeightPublisher:
    """Keeps the broadcast group of one trainer and its replicas, and publishes versions to it."""

    def __init__(self, trainer: TrainerClient, replicas: Sequence[RolloutClient]) -> None:
        self._trainer = trainer
        self._replicas = list(replicas)
        self._group: weights_pb2.WeightGroup | None = None
        self._first_ranks: list[int] = []

    async def publish(self, policy_version: int, *, timeout_s: float = 300.0) -> Publication:
        """Makes every replica serve the trainer's present weights as `policy_version`.

        Raises DigestMismatchError, naming the replica, if what arrived is not what was sent. After an error the group
        is opened anew by the next call.
        """
        try:
            group = self._group or await self._open()
            receptions = [
                replica.update_weights(policy_version, group, first_rank=rank, timeout_s=timeout_s)
                for replica, rank in zip(self._replicas, self._first_ranks, strict=True)
            ]
            sending = self._trainer.publish_weights(group.group_id, policy_version, timeout_s=timeout_s)
            sent, *received = await _all_or_first_error(sending, *receptions)
            for replica, arrived in zip(self._replicas, received, strict=True):
                if arrived.weights_digest != sent.weights_digest:
                    raise DigestMismatchError(
                        f"version {policy_version}: the trainer sent weights {sent.weights_digest}, but rollout "
                        f"{replica.address} holds {arrived.weights_digest}; the rollout side is behind and serves nothing "
                        "until a whole update reaches it"
                    )
            commits = await _all_or_first_error(
                *(replica.commit_weights(policy_version, sent.weights_digest) for replica in self._replicas)
            )
        except BaseException:
            self._group = None
            raise
        phases = [sent.phases, *(arrived.phases for arrived in received)]
        return Publication(
            policy_version,
            sent.weights_digest,
            sent.bytes,
            gather_s=sent.phases.gather_s,
            wire_s=max(phase.wire_s for phase in phases),
            load_s=max(phase.load_s for phase in phases),
            digest_s=max(phase.digest_s for phase in phases),
            pause_s=max(commit.pause_s for commit in commits),
        )

    async def _open(self) -> weights_pb2.WeightGroup:
        statuses = await _all_or_first_error(*(replica.get_status() for replica in self._replicas))
        rank = 1  # rank 0 is the sender
        self._first_ranks = []
        for status in statuses:
            self._first_ranks.append(rank)
            rank += status.workers
        self._group = await self._trainer.open_weight_group(rank - 1)
        return self._group


async def _all_or_first_error(*calls: Coroutine[Any, Any, Any]) -> list[Any]:
    """Like gather, but the first error cancels the other calls and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(call) for call in calls]
    except* Exception as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in running]
