"""A receiver: how each sender's buckets come to this process, and what becomes of them."""

from collections.abc import Callable
from typing import Any

import torch

from baton.api.common.v1 import weights_pb2
from baton.errors import InvalidRequestError
from services.common.weight_sync.group import BroadcastGroup
from services.common.weight_sync.loading import Comparison, Copies
from services.common.weight_sync.plan import described, plan_buckets
from services.common.weight_sync.shared_memory import SharedWire
from services.common.weight_sync.stopwatch import Stopwatch
from services.common.weight_sync.transfer import (
    BroadcastWire,
    Deadline,
    Lane,
    Sink,
    Transfer,
    Wire,
    groups_of,
    leaving_if_broken,
    receive,
    take_again,
)


def join(
    group: weights_pb2.WeightGroup, number: int, device: torch.device, timeout_s: float, *, staged: bool = False
) -> list[Lane]:  # fmt: skip
    """Joins every sender's process group as receiver `number`, while the senders do, or maps its memory. Raises
    DeadlineError if a sender is missing, InvalidRequestError if the group is not for this receiver."""
    lanes: list[Lane] = []
    joined: list[BroadcastGroup] = []
    with leaving_if_broken(joined):
        for sender in group.senders:
            buckets = plan_buckets(described(sender), sender.bucket_bytes)
            wire: Wire
            if number in sender.members:
                rank = 1 + list(sender.members).index(number)
                own = BroadcastGroup.join(
                    sender.store_host, sender.store_port, rank=rank, size=len(sender.members) + 1, backend=group.backend,
                    group_id=group.group_id, timeout_s=timeout_s,
                )  # fmt: skip
                joined.append(own)
                wire, where = BroadcastWire(own, group.backend), torch.device("cpu") if group.backend == "gloo" else device
            elif sender.storages:
                wire, where = SharedWire(sender, buckets, device), device
            else:
                raise InvalidRequestError(
                    f"receiver {number} is no member of weight group {group.group_id}; open the group for as many receivers "
                    "as there are workers"
                )
            lanes.append(Lane(buckets, wire, where, staged=staged))
    return lanes


Compare = Callable[[], Copies | None]
"""Where everything lies when it is loaded; None: that cannot be said."""


class Reception:
    """One receiver's lanes, kept as long as the group is. Weights are loaded as they come (`take`), or all of them are kept
    first (`stage`) and loaded later (`load_staged`)."""

    def __init__(
        self, group: weights_pb2.WeightGroup, number: int, device: torch.device, timeout_s: float, *, staged: bool = False
    ) -> None:  # fmt: skip
        """Joins."""
        self.lanes = join(group, number, device, timeout_s, staged=staged)
        self.groups = groups_of(self.lanes)
        self.plans = [lane.buckets for lane in self.lanes]
        self.device = device
        self._report: dict[str, Any] = {}

    def take(self, sink: Sink, compare: Compare | None, timeout_s: float) -> dict[str, Any]:
        """One whole update. With `compare` it comes twice, and is compared the second time. Returns digest, bytes, seconds
        per phase, transports and how much was compared."""
        deadline = Deadline(timeout_s)
        report = self._reported(receive(self.lanes, sink, self.device, deadline))
        sink.record()
        if compare is not None:
            comparison = Comparison(compare(), self.plans)
            report["seconds"]["verify"] = take_again(self.lanes, comparison, self.device, deadline)
            report["verified_bytes"] = comparison.finish()
        return report

    def stage(self, timeout_s: float, *, verify: bool) -> dict[str, Any]:
        """One whole update into memory of its own; whatever its digest says is what `load_staged` loads."""
        deadline = Deadline(timeout_s)
        for _ in range(1 + verify):  # what is to be verified comes twice
            self._report = self._reported(receive(self.lanes, None, self.device, deadline))
        return self._report

    def load_staged(self, sink: Sink, compare: Compare | None) -> dict[str, Any]:
        """Loads what was staged, and with `compare`, compares it. Returns the report of it with the seconds of loading."""
        report, watch = self._report, Stopwatch(self.device)
        with watch.phase("load"):
            self._feed(sink)
        sink.record()
        if compare is not None:
            comparison = Comparison(compare(), self.plans)
            with watch.phase("verify"):
                self._feed(comparison)
            report["verified_bytes"] = comparison.finish()
        if self.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        seconds = watch.seconds()
        report["seconds"] |= {phase: seconds[phase] for phase in ("load", "verify")}
        return report

    def _feed(self, sink: Sink) -> None:
        for number, lane in enumerate(self.lanes):
            for index, views in enumerate(lane.views):
                sink.load(number, index, views)

    def _reported(self, transfer: Transfer) -> dict[str, Any]:
        return {
            "digest": transfer.digest.hexdigest(), "bytes": transfer.bytes, "seconds": transfer.seconds,
            "transports": sorted({lane.wire.transport for lane in self.lanes}), "verified_bytes": 0,
        }  # fmt: skip
