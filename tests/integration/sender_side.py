"""A sender of weights in the test's own process: it can stop in the midst of a model, which a trainer does only by dying."""

import asyncio
import threading
import uuid
from collections.abc import Iterator

import torch

from baton.api.common.v1 import weights_pb2
from baton.clients import RolloutClient
from services.common.weight_sync.group import BroadcastGroup, open_store
from services.common.weight_sync.plan import describe, plan_buckets
from services.common.weight_sync.transfer import Transfer, send

HOST = "127.0.0.1"
TIMEOUT_S = 30.0


class SentModel:
    """The parameters of a model by transformers, in its order, each in a bucket of its own."""

    def __init__(self, model: torch.nn.Module, *, workers: int = 1, **further: torch.Tensor) -> None:
        """Opens a group for one update of one replica of so many workers. `further` tensors, which the model has not, come
        last."""
        self.may_go_on = threading.Event()
        """What an update that stops at a tensor waits for before it leaves."""
        self._tensors = {name: parameter.detach() for name, parameter in model.named_parameters()} | further
        self._store = open_store(HOST)
        self.group = weights_pb2.WeightGroup(group_id=uuid.uuid4().hex, backend="gloo", receivers=workers, bucket_bytes=1)
        shapes = ((name, tuple(tensor.shape)) for name, tensor in self._tensors.items())
        tensors = describe(shapes, torch.float32)
        self.group.senders.add(store_host=HOST, store_port=self._store.port, tensors=tensors)

    async def update(self, rollout: RolloutClient, version: int, *, stop_after: str = "") -> str:
        """The digest that arrived. Raises as the replica does, also where it is left after a tensor."""
        sending = asyncio.create_task(asyncio.to_thread(self._send, stop_after))
        try:
            answer = await rollout.update_weights(version, self.group, first_rank=1, timeout_s=TIMEOUT_S)
            assert answer.weights_digest == (await sending).digest.hexdigest()
            return answer.weights_digest
        finally:
            self.may_go_on.set()
            await asyncio.gather(sending, return_exceptions=True)

    def _send(self, stop_after: str) -> Transfer | None:
        group = BroadcastGroup(
            self._store, HOST, rank=0, size=1 + self.group.receivers, backend="gloo", group_id=self.group.group_id,
            timeout_s=TIMEOUT_S,
        )  # fmt: skip
        try:
            return send(group, plan_buckets(self.group.senders[0].tensors, 1), self._until(stop_after), torch.device("cpu"))
        except StopIteration:
            return None

    def _until(self, stop_after: str) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self._tensors.items():
            yield name, tensor
            if name == stop_after:
                self.may_go_on.wait(TIMEOUT_S)
                return
