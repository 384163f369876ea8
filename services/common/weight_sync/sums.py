"""The sums of all parts of one sender's buckets, computed bucket by bucket where they lie."""

from collections.abc import Sequence
from functools import partial

import torch

from services.common.weight_sync.digest import Key, WeightsDigest, part_sums
from services.common.weight_sync.plan import Bucket
from services.common.weight_sync.replay import Replay


class PlanSums:
    """One table for a plan, filled anew at every update; on a GPU nothing is read back before the end."""

    def __init__(self, buckets: Sequence[Bucket], buffers: Sequence[torch.Tensor], device: torch.device) -> None:
        """Each bucket's parts are always in the same buffer."""
        keys = [Key.of(slot.part) for bucket in buckets for slot in bucket.slots]
        self._factors = torch.tensor([(key.first, key.second) for key in keys], dtype=torch.int64, device=device)
        self._constants = [sum(lane) for lane in zip(*(key.constant for key in keys), strict=True)]
        self._table = torch.zeros(len(keys), 2, dtype=torch.int64, device=device)
        self._sums = self._table.split([len(bucket.slots) for bucket in buckets])
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
        if self._constants:
            digest.add_lanes((self._table[:, :, None] * self._factors).sum((0, 1)).tolist())
            digest.add_lanes(self._constants)


def _sum(bucket: Bucket, buffer: torch.Tensor, sums: torch.Tensor) -> None:
    for row, slot in zip(sums, bucket.slots, strict=True):
        row.copy_(part_sums(slot.part, slot.view(buffer)))
