"""The sending end of weight updates: every rank of the first data-parallel replica sends its own shard."""

import logging
import threading
import time
import uuid
from collections.abc import Sequence

import torch

from baton.api.common.v1 import weights_pb2
from baton.errors import NotFoundError, NotReadyError
from services.common.devices import device_name
from services.common.weight_sync.group import BroadcastGroup, open_store
from services.common.weight_sync.plan import Region, cut, describe, described, plan_buckets
from services.common.weight_sync.shared_memory import share
from services.common.weight_sync.transfer import (
    BroadcastWire,
    Deadline,
    Gathering,
    Lane,
    NoWire,
    Transfer,
    groups_of,
    leaving_if_broken,
    send,
)
from services.trainer.megatron import regions
from services.trainer.megatron.engine import Engine
from services.trainer.megatron.lora import adapter_regions
from services.trainer.megatron.lora.merged import merged_weights

log = logging.getLogger(__name__)

BUCKETS = 12
"""About as many are enough for the phases to overlap, and each costs a GPU's host some 0.2 ms; each side has memory for two
of a sender's."""

LEAST_BUCKET_BYTES = 32 << 20
"""Smaller ones waste a fast link's time."""

_SENT = {
    weights_pb2.WEIGHT_CONTENT_BASE: regions.sent_base,
    weights_pb2.WEIGHT_CONTENT_ADAPTER: adapter_regions,
}
"""What a rank sends of each content but the whole model."""


class WeightSender:
    """This rank's part in publishing."""

    def __init__(self, engine: Engine, host: str, dtype: torch.dtype, bucket_bytes: int) -> None:
        """`host` is the address that receivers reach this machine by; weights travel as `dtype`, in buckets of at most
        `bucket_bytes`."""
        self._engine = engine
        self._host = host
        self._dtype = dtype
        self._bucket_bytes = bucket_bytes
        self._device = engine.layout.device
        self._group = weights_pb2.WeightGroup()
        self._store = None
        self._regions: list[Region] = []
        self._parameters: list[torch.Tensor] = []
        self._places: list[int] = []
        self._gathering: Gathering | None = None
        self._give_up = threading.Event()

    def give_up(self) -> None:
        """From any thread: ends a publication that still waits for its receivers, until a group is opened again."""
        self._give_up.set()

    def open(
        self, devices: Sequence[str], content: weights_pb2.WeightContent = weights_pb2.WEIGHT_CONTENT_MODEL
    ) -> weights_pb2.WeightGroup:  # fmt: skip
        """Starts this sender's rendezvous store, for one receiver on each of these devices, which are named as by
        `device_name`; "" is on another GPU. Returns the group with this sender alone; `combine_groups` adds the others."""
        self._gathering = None
        self._give_up.clear()
        self._group = weights_pb2.WeightGroup(
            group_id=uuid.uuid4().hex,
            backend="gloo" if self._device.type == "cpu" or "cpu" in devices else "nccl",
            receivers=len(devices),
            content=content,
        )
        if self._engine.layout.is_sender:
            self._describe(devices)
        return self._group

    def _describe(self, devices: Sequence[str]) -> None:
        self._store = open_store(self._host)
        sent = _SENT.get(self._group.content, regions.sent)
        held = list(sent(self._engine.policy, self._engine.layout, self._dtype))
        total = sum(region.part.nbytes for region in held)
        bucket_bytes = min(self._bucket_bytes, max(total // BUCKETS, LEAST_BUCKET_BYTES))
        self._regions = list(cut(held, bucket_bytes))
        self._parameters = list(self._engine.policy.parameters())
        self._places = self._parameter_places()
        sender = self._group.senders.add(store_host=self._host, store_port=self._store.port, bucket_bytes=bucket_bytes)
        describe([region.part for region in self._regions], sender)
        own = device_name(self._device)
        near = {number for number, device in enumerate(devices, start=1) if device == own != "cpu"}
        sender.members.extend(number for number in range(1, len(devices) + 1) if number not in near)
        if near:
            share(self._regions, sender)

    def _parameter_places(self) -> list[int]:
        return [parameter.data_ptr() for parameter in self._parameters]

    def adopt(self, group_id: str) -> None:
        """All ranks: use the id that rank 0 gave the merged group. Empty closes the group."""
        self._group.group_id = group_id
        self._gathering = None

    def publish(self, group_id: str, timeout_s: float, *, verify: bool) -> Transfer | None:
        """Sends every bucket to the receivers, twice to `verify`; None on ranks that do not send. Raises NotFoundError for
        another group, NotReadyError if it is to be opened again."""
        if group_id != self._group.group_id:
            raise NotFoundError(
                f"weight group {group_id} is not open (the open one is {self._group.group_id or 'none'}); open it again"
            )
        if not self._engine.layout.is_sender:
            return None
        deadline, begun = Deadline(timeout_s, self._give_up), time.perf_counter()
        try:
            if self._gathering is None:
                self._gathering = self._join(timeout_s)
            with leaving_if_broken(groups_of([self._gathering.lane])):
                return self._send(deadline, begun, verify=verify)
        except BaseException:
            self._gathering = None  # its connections too, so that no receiver waits for the rest
            raise

    def _send(self, deadline: Deadline, begun: float, *, verify: bool) -> Transfer:
        if self._places != self._parameter_places():
            raise NotReadyError("the model's parameters have moved in memory since the group was opened; open it again")
        if self._engine.adapted and self._group.content not in _SENT:
            merged_weights(self._engine.policy)
        transfer = send(self._gathering, deadline)
        milliseconds = 1e3 * (time.perf_counter() - begun)
        log.info("sent %d bytes in %.1f ms, the wait for receivers included", transfer.bytes, milliseconds)
        if verify:
            send(self._gathering, deadline)
        return transfer

    def _join(self, timeout_s: float) -> Gathering:
        sender, wire = self._group.senders[0], NoWire()
        buckets = plan_buckets(described(sender), sender.bucket_bytes)
        joined: list[BroadcastGroup] = []
        with leaving_if_broken(joined):
            if sender.members:
                group = BroadcastGroup(
                    self._store, self._host, rank=0, size=len(sender.members) + 1, backend=self._group.backend,
                    group_id=self._group.group_id, timeout_s=timeout_s, give_up=self._give_up,
                )  # fmt: skip
                joined.append(group)
                wire = BroadcastWire(group, self._group.backend)
            lane = Lane(buckets, wire, torch.device("cpu") if self._group.backend == "gloo" else self._device)
            return Gathering(lane, self._regions, self._device)
