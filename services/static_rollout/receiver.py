"""The receiving end of a weight update, on every rank of a static replica."""

from typing import Any

from baton.api.common.v1 import weights_pb2
from baton.api.rollout.v1 import rollout_pb2 as pb
from services.common.weight_sync.loading import Copies, DirectSink
from services.common.weight_sync.receiving import Reception
from services.common.weight_sync.transfer import leaving_if_broken
from services.trainer.megatron import regions
from services.trainer.megatron.stage import CachedStage


class WeightReceiver:
    """Joins a group when it is a new one, and receives every sender's parts into this rank's parameters."""

    def __init__(self, stage: CachedStage) -> None:
        self._policy, self._layout = stage.policy, stage.layout
        self._group_id = ""
        self._reception: Reception | None = None
        self._copies: Copies | None = None
        self._sink: DirectSink | None = None

    def update(self, request: pb.UpdateWeightsRequest) -> dict[str, Any]:
        """Receives a whole set. Returns digest, bytes, seconds per phase, transports, path and how much was compared.

        Raises DeadlineError if a member of the group is missing, InvalidRequestError if a tensor is.
        """
        if request.group.group_id != self._group_id:
            self._join(request)
        with leaving_if_broken(self._reception.groups):
            report = self._reception.take(self._sink, (lambda: self._copies) if request.verify else None, request.timeout_s)
        return report | {"path": weights_pb2.LOAD_PATH_DIRECT}

    def leave(self) -> None:
        """Forgets the group: the next update joins it anew."""
        self._group_id, self._reception, self._copies, self._sink = "", None, None, None

    def _join(self, request: pb.UpdateWeightsRequest) -> None:
        self.leave()
        group = request.group
        number = request.first_rank + self._layout.world_rank
        self._reception = Reception(group, number, self._layout.device, request.timeout_s)
        dtype = next(self._policy.parameters()).dtype
        with leaving_if_broken(self._reception.groups):
            held = list(regions.held(self._policy, self._layout, dtype))
            self._copies = Copies(self._reception.plans, held)
            self._sink = DirectSink(self._copies, self._reception.lanes, self._layout.device)
        self._group_id = group.group_id
