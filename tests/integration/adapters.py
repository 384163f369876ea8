"""What tests of adapter updates share: a replica with room for adapters, and who sends it one after another."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lora_factors import RANK, random_factors, with_adapter
from rollout_side import vllm_service
from sender_side import SentAdapter, SentModel
from updates import next_version

from baton.api.common.v1 import weights_pb2
from baton.clients import RolloutClient
from baton.clients.rollout_control import InFlight
from processes import ServiceProcess

MULTIPLIER = 0.5


def running(directory: Path, model: Path, **policy: Any) -> Iterator[ServiceProcess]:
    """A replica with room for adapters of the rank that tests have, until it is let go of."""
    lora = {"lora_dim": RANK, "lora_scaling": MULTIPLIER * RANK}
    service = vllm_service(directory, model, lora, ignore_eos=True, **policy)
    try:
        yield service.start(timeout_s=240)
    finally:
        service.kill()


class Sender:
    """Of adapters for one base."""

    def __init__(self, rollout: RolloutClient, base: torch.nn.Module, workers: int = 1) -> None:
        self.rollout, self.base, self._workers = rollout, base, workers

    async def base_digest(self) -> str:
        """Of the base that the replica holds; it is sent first if it holds none."""
        held = (await self.rollout.get_status()).base_digest
        if held:
            return held
        sent = SentModel(self.base, workers=self._workers, content=weights_pb2.WEIGHT_CONTENT_BASE)
        return await sent.update(self.rollout, await next_version(self.rollout))

    async def adapter(self, factors: dict[str, torch.Tensor], multiplier: float = MULTIPLIER) -> SentAdapter:
        """That which is to be sent."""
        return SentAdapter(factors, await self.base_digest(), multiplier=multiplier, workers=self._workers)

    async def serve(self, seed: int, in_flight: InFlight = "keep", begin_s: float = 30.0) -> tuple[int, torch.nn.Module]:
        """Has the next version served, a random adapter; returns it, and the model that it makes of the base."""
        factors = random_factors(self.base, seed)
        sent = await self.adapter(factors)
        version = await next_version(self.rollout)
        digest = await sent.update(self.rollout, version, in_flight=in_flight, begin_s=begin_s)
        await self.rollout.commit_weights(version, digest)
        return version, with_adapter(self.base, factors, MULTIPLIER)
