"""The sums of all parts of one sender's buckets, computed bucket by bucket where they lie."""

from collections.abc import Sequence
from functools import partial

import torch

from services.common.weight_sync.digest import WeightsDigest, part_sums
from services.common.weight_sync.plan import Bucket
from services.common.weight_sync.replay import Replay


class PlanSums:
    """One table for a plan, filled anew at every update; on a GPU nothing is read back before the end."""

    def __init__(self, buckets: Sequence[Bucket], buffers: Sequence[torch.Tensor], device: torch.device) -> None:
        """Each bucket's parts are always in the same buffer."""
        parts = [slot.part for bucket in buckets for slot in bucket.slots]
        tensors = {part.name: part for part in parts}
        numbers = {name: number for number, name in enumerate(tensors)}
        self._tensors = list(tensors.values())  # one part of each
        self._owners = torch.tensor([numbers[part.name] for part in parts], dtype=torch.int64, device=device)
        self._sums = [torch.zeros(len(bucket.slots), 2, dtype=torch.int64, device=device) for bucket in buckets]
        pieces = [partial(_sum, *each) for each in zip(buckets, buffers, self._sums, strict=True)]
        if device.type == "cuda":
            from services.common.weight_sync.digest_cuda import BucketSummer

            pieces = [
                partial(BucketSummer(bucket, device).sum, buffer, sums)
                for bucket, buffer, sums in zip(buckets, buffers, self._sums, strict=True)
            ]
        self.replay = Replay(pieces, device)

    def add_to(self, digest: WeightsDigest) -> None:
        """After the last bucket; waits for the device."""
        if not self._sums:
            return
        table = torch.zeros(len(self._tensors), 2, dtype=torch.int64, device=self._owners.device)
        table.index_add_(0, self._owners, torch.cat(self._sums))
        for part, (first, second) in zip(self._tensors, table.tolist(), strict=True):
            digest.add(part, first, second)


def _sum(bucket: Bucket, buffer: torch.Tensor, sums: torch.Tensor) -> None:
    for row, slot in zip(sums, bucket.slots, strict=True):
        row.copy_(part_sums(slot.part, slot.view(buffer)))
