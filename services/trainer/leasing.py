"""One rank's dealings with the buffer: its share of a step, leased, given back, or acknowledged."""

import asyncio
import secrets
from contextlib import suppress
from dataclasses import dataclass

import torch
import torch.distributed as dist

from baton.api.trainer.v1 import trainer_pb2 as pb
from baton.clients import BufferClient
from baton.clients.buffer import MicroBatch
from baton.config import RunConfig
from baton.errors import BatonError, LeaseLostError
from services.trainer.merging import merged
from services.trainer.models import Models


@dataclass(slots=True)
class Lease:
    """Of one step. Its id is another one once it is renewed."""

    id: str


class Leasing:
    """Leases steps under one name on all ranks, another one at each start."""

    def __init__(self, run: RunConfig, models: Models) -> None:
        self._runtime, self._deadlines = run.runtime, run.deadlines
        self._models = models
        self._lessee = f"trainer-{_shared_random(models.layout.device):016x}"

    def lease(self, request: pb.TrainStepRequest) -> list[MicroBatch]:
        """This rank's micro-batches of the step, of `train_micro_batch_tokens` if the run file says so."""
        return asyncio.run(self._lease(request))

    def release(self, request: pb.TrainStepRequest, lease: Lease, error: Exception) -> None:
        """Gives the step back, so that others may have it at once, and the ledger knows why it was not trained; whatever
        comes of that."""
        reason = str(error) if isinstance(error, BatonError) else f"{type(error).__name__}: {error}"
        with suppress(BatonError):  # another rank was quicker, or the buffer is away
            asyncio.run(self._release(request, lease, reason))

    def acknowledge(self, request: pb.TrainStepRequest, lease: Lease, global_step: int) -> None:
        """The step was trained. Raises LeaseLostError if somebody else has leased it since."""
        asyncio.run(self._acknowledge(request, lease, global_step))

    def _client(self, request: pb.TrainStepRequest) -> BufferClient:
        return BufferClient(request.buffer_address, timeout_s=self._deadlines.buffer_s)

    async def _lease(self, request: pb.TrainStepRequest) -> list[MicroBatch]:
        layout, tokens = self._models.layout, self._runtime.train_micro_batch_tokens
        async with self._client(request) as buffer:
            stream = buffer.lease(
                request.run_id, request.episode_id, pass_index=request.pass_index, step_index=request.step_index,
                data_parallel_rank=layout.data_rank, data_parallel_size=layout.data_size,
                shuffle_seed=self._runtime.seed, wait_s=self._deadlines.generate_s, lessee=self._lessee,
                micro_batch_tokens=tokens,
            )  # fmt: skip
            batches = [batch async for batch in stream]
        return merged(batches, tokens, share_prefix=self._models.policy.share_prefix) if tokens else batches

    async def _release(self, request: pb.TrainStepRequest, lease: Lease, reason: str) -> None:
        async with self._client(request) as buffer:
            await buffer.release_lease(request.run_id, request.episode_id, lease.id, reason=reason)

    async def _acknowledge(self, request: pb.TrainStepRequest, lease: Lease, global_step: int) -> None:
        where = request.run_id, request.episode_id
        async with self._client(request) as buffer:
            try:
                await buffer.ack(*where, lease.id, global_step=global_step)
            except LeaseLostError:  # a step may take longer than its lease; nobody else may have had it since
                lease.id, _ = await buffer.renew_lease(*where, lease.id, lessee=self._lessee)
                await buffer.ack(*where, lease.id, global_step=global_step)


def _shared_random(device: torch.device) -> int:
    """The same random number on all ranks, another one at each start."""
    number = torch.tensor([secrets.randbits(62)], device=device)
    dist.broadcast(number, 0)
    return int(number)
