"""The sending end of weight updates: one group per pipeline stage, opened for a number of receivers."""

import threading
import uuid

import torch

from baton.api.common.v1 import weights_pb2
from baton.errors import NotFoundError
from services.common.weight_sync.group import BroadcastGroup, open_store
from services.common.weight_sync.plan import describe, plan_buckets
from services.common.weight_sync.transfer import Transfer, send
from services.trainer.megatron.engine import Engine
from services.trainer.megatron.hf import gather_hf, hf_shapes


class WeightSender:
    """This rank's part in publishing; ranks that do not send still take part in gathering shards."""

    def __init__(self, engine: Engine, host: str, dtype: torch.dtype, bucket_bytes: int) -> None:
        """`host` is the address that receivers reach this machine by; weights travel as `dtype`."""
        self._engine = engine
        self._host = host
        self._dtype = dtype
        self._bucket_bytes = bucket_bytes
        self._group = weights_pb2.WeightGroup()
        self._store = None
        self._broadcast: BroadcastGroup | None = None
        self._give_up = threading.Event()

    def give_up(self) -> None:
        """From any thread: ends a publication that still waits for its receivers, until a group is opened again."""
        self._give_up.set()

    def open(self, receivers: int) -> weights_pb2.WeightGroup:
        """Starts this sender's rendezvous store. Returns the group with this sender alone; `merge` adds the others."""
        self._broadcast = None
        self._give_up.clear()
        self._group = weights_pb2.WeightGroup(
            group_id=uuid.uuid4().hex,
            backend="gloo" if self._engine.layout.device.type == "cpu" else "nccl",
            receivers=receivers,
            bucket_bytes=self._bucket_bytes,
        )
        if self._engine.layout.is_sender:
            self._store = open_store(self._host)
            tensors = describe(hf_shapes(self._engine.policy, self._engine.layout), self._dtype)
            self._group.senders.add(store_host=self._host, store_port=self._store.port, tensors=tensors)
        return self._group

    def adopt(self, group_id: str) -> None:
        """All ranks: use the id that rank 0 gave the merged group. Empty closes the group."""
        self._group.group_id = group_id
        self._broadcast = None

    def publish(self, group_id: str, timeout_s: float) -> Transfer | None:
        """Sends every bucket to the receivers; None on ranks that only gather. Raises NotFoundError for another group."""
        if group_id != self._group.group_id:
            raise NotFoundError(
                f"weight group {group_id} is not open (the open one is {self._group.group_id or 'none'}); open it again"
            )
        layout = self._engine.layout
        if layout.data_rank != 0:
            return None
        tensors = gather_hf(self._engine.policy, layout)
        if not layout.is_sender:
            for _ in tensors:
                raise AssertionError("only tensor-parallel rank 0 gets whole tensors")
            return None
        try:
            if self._broadcast is None:
                self._broadcast = BroadcastGroup(
                    self._store, self._host, rank=0, size=self._group.receivers + 1, backend=self._group.backend,
                    group_id=group_id, timeout_s=timeout_s, give_up=self._give_up,
                )  # fmt: skip
            return send(
                self._broadcast, plan_buckets(self._group.senders[0].tensors, self._bucket_bytes), tensors, layout.device
            )
        except BaseException:
            self._broadcast = None  # its connections too, so that no receiver waits for the rest
            for _ in tensors:  # the other tensor-parallel ranks gather all the same, and wait for this one
                pass
            raise
