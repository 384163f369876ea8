"""A sender of weights in the test's own process: it can stop in the midst of a model, which a trainer does only by dying."""

import asyncio
import threading
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from baton.api.common.v1 import weights_pb2
from baton.clients import RolloutClient
from baton.clients.rollout_control import InFlight
from services.common.weight_sync.digest import joined
from services.common.weight_sync.group import BroadcastGroup, open_store
from services.common.weight_sync.plan import Part, Region, as_matrix, describe, plan_buckets
from services.common.weight_sync.transfer import BroadcastWire, Deadline, Lane, Transfer, send

HOST = "127.0.0.1"
TIMEOUT_S = 30.0
CPU = torch.device("cpu")
MODEL = weights_pb2.WEIGHT_CONTENT_MODEL


class Paced:
    """Gathers one region after another as they are given, and with the last one ends the update in its midst."""

    def __init__(self, lane: Lane, regions: Iterator[Region]) -> None:
        self.lane, self.device = lane, CPU
        self._regions = regions

    @property
    def replay(self) -> "Paced":
        """Itself."""
        return self

    def run(self, index: int) -> None:
        """Raises StopIteration after the last."""
        self.lane.views[index][0].copy_(next(self._regions).matrix)

    def record(self) -> None:
        """Nothing."""


class Sent:
    """Some tensors, in their order, each in a bucket of its own."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], workers: int, **described: Any) -> None:
        """Opens a group, `described` by these fields too, for one update of one replica of so many workers."""
        self.may_go_on = threading.Event()
        """What an update that stops at a tensor waits for before it leaves."""
        self._tensors = dict(tensors)
        self._store = open_store(HOST)
        self.group = weights_pb2.WeightGroup(group_id=uuid.uuid4().hex, backend="gloo", receivers=workers, **described)
        sender = self.group.senders.add(store_host=HOST, store_port=self._store.port, bucket_bytes=1)
        sender.members.extend(range(1, workers + 1))
        self._parts = [Part.whole(name, torch.float32, tensor.shape) for name, tensor in self._tensors.items()]
        describe(self._parts, sender)

    async def update(
        self, rollout: RolloutClient, version: int, *, stop_after: str = "", in_flight: InFlight = "abort",
        begin_s: float = TIMEOUT_S, timeout_s: float = TIMEOUT_S,
    ) -> str:  # fmt: skip
        """The digest that arrived. Raises as the replica does, also where it is left after a tensor."""
        sending = asyncio.create_task(asyncio.to_thread(self._send, stop_after))
        try:
            answer = await rollout.update_weights(
                version, self.group, first_rank=1, begin_s=begin_s, timeout_s=timeout_s, in_flight=in_flight
            )
            assert answer.weights_digest == joined(self.group.base_digest or "0" * 32, (await sending).digest.hexdigest())
            return answer.weights_digest
        finally:
            self.may_go_on.set()
            await asyncio.gather(sending, return_exceptions=True)

    def _send(self, stop_after: str) -> Transfer | None:
        group = BroadcastGroup(
            self._store, HOST, rank=0, size=1 + self.group.receivers, backend="gloo", group_id=self.group.group_id,
            timeout_s=TIMEOUT_S, give_up=self.may_go_on if not stop_after else None,
        )  # fmt: skip
        lane = Lane(plan_buckets(self._parts, 1), BroadcastWire(group, "gloo"), CPU)
        try:
            return send(Paced(lane, self._until(stop_after)), Deadline(TIMEOUT_S))
        except StopIteration:
            return None

    def _until(self, stop_after: str) -> Iterator[Region]:
        for part in self._parts:
            yield Region(part, as_matrix(self._tensors[part.name]))
            if part.name == stop_after:
                self.may_go_on.wait(TIMEOUT_S)
                return


class SentModel(Sent):
    """The parameters of a model by transformers."""

    def __init__(
        self, model: torch.nn.Module, *, workers: int = 1, content: weights_pb2.WeightContent = MODEL,
        **further: torch.Tensor,
    ) -> None:  # fmt: skip
        """`further` tensors, which the model has not, come last."""
        tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
        super().__init__(tensors | further, workers, content=content)


class SentAdapter(Sent):
    """The factors of an adapter, under PEFT's names."""

    def __init__(
        self, factors: Mapping[str, torch.Tensor], base_digest: str, *, multiplier: float = 1.0, workers: int = 1
    ) -> None:  # fmt: skip
        super().__init__(
            factors, workers, content=weights_pb2.WEIGHT_CONTENT_ADAPTER, base_digest=base_digest,
            adapter_multiplier=multiplier,
        )  # fmt: skip
