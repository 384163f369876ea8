"""The receiving end of a weight update, on every rank of a static replica."""

from typing import Any

from baton.api.rollout.v1 import rollout_pb2 as pb
from services.common.weight_sync.digest import WeightsDigest
from services.common.weight_sync.group import BroadcastGroup
from services.common.weight_sync.plan import Bucket, plan_buckets
from services.common.weight_sync.transfer import receive
from services.trainer.megatron.intake import Intake
from services.trainer.megatron.parallel import Layout
from services.trainer.megatron.stage import CachedStage


class WeightReceiver:
    """Joins a group when it is a new one, and receives every sender's tensors into this rank's parameters."""

    def __init__(self, stage: CachedStage) -> None:
        self._policy = stage.policy
        self._layout: Layout = stage.layout
        self._group_id = ""
        self._senders: list[tuple[BroadcastGroup, list[Bucket]]] = []

    def update(self, request: pb.UpdateWeightsRequest) -> dict[str, Any]:
        """Receives a whole set. Returns digest, bytes and seconds per phase.

        Raises DeadlineError if a member of the group is missing, InvalidRequestError if a tensor is.
        """
        if request.group.group_id != self._group_id:
            self._join(request)
        digest, seconds, count = WeightsDigest(), {}, 0
        intake = Intake(self._policy, self._layout)
        for group, buckets in self._senders:
            transfer = receive(group, buckets, intake.take, self._layout.device)
            digest.merge(transfer.digest.hexdigest())
            seconds = {phase: seconds.get(phase, 0.0) + spent for phase, spent in transfer.seconds.items()}
            count += transfer.bytes
        intake.finish()
        return {"digest": digest.hexdigest(), "bytes": count, "seconds": seconds}

    def leave(self) -> None:
        """Forgets the group: the next update joins it anew."""
        self._group_id, self._senders = "", []

    def _join(self, request: pb.UpdateWeightsRequest) -> None:
        self.leave()
        group, join = request.group, BroadcastGroup.join
        self._senders = [
            (
                join(
                    sender.store_host, sender.store_port, rank=request.first_rank + self._layout.world_rank,
                    size=group.receivers + 1, backend=group.backend, group_id=group.group_id, timeout_s=request.timeout_s,
                ),
                plan_buckets(sender.tensors, group.bucket_bytes),
            )
            for sender in group.senders
        ]  # fmt: skip
        self._group_id = group.group_id
